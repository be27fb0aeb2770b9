"""The processes of the hop's measurement, and what the kernel says of them."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.experiment.mesh import all_healthy
from headway.channels import open_channel
from headway.lifeline import tied

START_S = 60.0
MOST_CALLS = 4096
MAX_DEADLINE_S = 600.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True)
class Hops:
    """What runs; addresses and process ids."""

    worker: str
    router: str
    bare: str
    pids: dict[str, int]


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, user and system. Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def resident_mib(pid: int) -> float:
    """Memory of a process that is in RAM. Linux only."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@asynccontextmanager
async def hops() -> AsyncIterator[Hops]:
    """The paced server, a text worker in front of it, and before that a router, and a bare hop beside it."""
    with tempfile.TemporaryDirectory(prefix="headway-hops-") as folder:
        worker, router, bare = (f"unix:{folder}/{name}.sock" for name in ("worker", "router", "bare"))
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(_process("-m", "benchmarks.hop.paced"))
            assert server.stdout is not None
            port = int(await server.stdout.readline())
            many = ("--max-concurrent-rpcs", str(MOST_CALLS), "--max-deadline-s", f"{MAX_DEADLINE_S:g}")
            quiet = ("--metrics-port", "off", "--log-level", "warning", *many)
            remote = ("--engine", "openai", "--base-url", f"http://127.0.0.1:{port}/v1", "--max-batch", "1024")
            running = {"server": server}
            running["worker"] = await stack.enter_async_context(
                _process("-m", "services.text_worker.main", "--listen", worker, *remote, *quiet)
            )
            running["router"] = await stack.enter_async_context(
                _process("-m", "services.router.main", "--listen", router, "--workers", f"text={worker}", *quiet)
            )
            running["bare"] = await stack.enter_async_context(_process("-m", "benchmarks.hop.bare", bare, worker))
            await all_healthy(router, 1)
            async with open_channel(bare) as channel:
                await asyncio.wait_for(channel.channel_ready(), START_S)
            yield Hops(worker, router, bare, {name: process.pid for name, process in running.items()})


@asynccontextmanager
async def _process(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *tied((sys.executable, *arguments)), stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
