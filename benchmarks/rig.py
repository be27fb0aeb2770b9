"""Runs a mesh of real processes for a benchmark."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.experiment.worker import fetch, free_port
from headway.cli.supervisor import Supervisor
from headway.cli.topology import MeshSettings, Part, default_models, parts_of
from headway.local_redis import find_server

_START_S, _DRAIN_S = 120.0, 10.0


@dataclass(frozen=True)
class Mesh:
    """A mesh that runs."""

    addresses: Mapping[str, str]
    """Of each part, by name."""
    metrics: Mapping[str, int]
    """Prometheus port of each service, by name."""
    supervisor: Supervisor

    async def metric(self, part: str, name: str) -> float:
        """The value of a metric without labels, now."""
        text = await asyncio.to_thread(fetch, f"http://127.0.0.1:{self.metrics[part]}/metrics")
        return float(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")))


@asynccontextmanager
async def mesh(*, arbiter: bool = True) -> AsyncIterator[Mesh]:
    """Starts every part of a mesh; `arbiter=False` lets the workers run without leases."""
    with tempfile.TemporaryDirectory(prefix="headway-bench-") as folder:
        settings = MeshSettings(
            listen=f"unix:{folder}/router.sock",
            models=default_models(),
            sockets=Path(folder),
            redis_server=find_server(),
        )
        parts = parts_of(settings, {**os.environ, "HEADWAY_LOG_LEVEL": "warning"})
        ports = {part.name: free_port() for part in parts if "--metrics-port" in part.command}
        parts = tuple(_changed(part, arbiter, ports) for part in parts)
        stop = asyncio.Event()
        ready = asyncio.Event()
        supervisor = Supervisor(
            parts,
            _say,
            start_s=_START_S,
            drain_s=_DRAIN_S,
            changed=lambda found: ready.set() if found.ready else None,
        )
        running = asyncio.create_task(supervisor.run(stop))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        try:
            if not running.done():
                addresses = {part.name: f"unix:{folder}/{part.name}.sock" for part in parts}
                yield Mesh(addresses, ports, supervisor)
        finally:
            stop.set()
            await running


def _changed(part: Part, arbiter: bool, ports: Mapping[str, int]) -> Part:
    command = list(part.command)
    if part.name in ports:
        command[command.index("--metrics-port") + 1] = str(ports[part.name])
    if not arbiter and "--device-socket" in command:
        at = command.index("--device-socket")
        del command[at : at + 2]
    return replace(part, command=tuple(command))


def _say(name: str, line: str) -> None:
    if " WARNING " in line or " ERROR " in line:
        print(f"  {name}: {line}")
