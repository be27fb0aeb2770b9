"""Runs a mesh of real processes for a benchmark."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from headway.cli.supervisor import Supervisor
from headway.cli.topology import MeshSettings, Part, default_models, parts_of
from headway.local_redis import find_server

_START_S, _DRAIN_S = 120.0, 10.0


@asynccontextmanager
async def mesh(*, arbiter: bool = True) -> AsyncIterator[dict[str, str]]:
    """Starts every part of a mesh and yields the address of each by name; `arbiter=False` lets workers run unleased."""
    with tempfile.TemporaryDirectory(prefix="headway-bench-") as folder:
        settings = MeshSettings(
            listen=f"unix:{folder}/router.sock",
            models=default_models(),
            sockets=Path(folder),
            redis_server=find_server(),
        )
        parts = parts_of(settings, {**os.environ, "HEADWAY_LOG_LEVEL": "warning"})
        parts = parts if arbiter else tuple(map(_unleased, parts))
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
                yield {part.name: f"unix:{folder}/{part.name}.sock" for part in parts}
        finally:
            stop.set()
            await running


def _unleased(part: Part) -> Part:
    if "--device-socket" not in part.command:
        return part
    at = part.command.index("--device-socket")
    return replace(part, command=(*part.command[:at], *part.command[at + 2 :]))


def _say(name: str, line: str) -> None:
    if "WARNING" in line or "ERROR" in line:
        print(f"  {name}: {line}")
