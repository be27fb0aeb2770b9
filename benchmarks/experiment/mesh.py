"""Several kinds under test at once: a worker of each on one device, in front of them a router, with or without arbiter.

Workers share the device's cores; router, arbiter and generator keep off them, on the generator's core.
"""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc

from benchmarks.experiment.worker import Cores, RunningWorker, running
from headway.client import AsyncHeadway
from headway.errors import HeadwayError
from headway.lifeline import tied
from headway.v1 import router_pb2

START_S = 60.0


@dataclass(frozen=True, slots=True)
class RunningMesh:
    """A mesh that serves."""

    router: str
    workers: Mapping[str, RunningWorker]
    """By kind, as the router names kinds."""


@asynccontextmanager
async def running_mesh(
    commands: Mapping[str, Sequence[str]], cores: Cores, *, arbiter: bool = True, router_flags: Sequence[str] = ()
) -> AsyncIterator[RunningMesh]:
    """`commands`: start the worker of each kind; they lack the flags of where it serves and of its device.

    Raises RuntimeError for a worker that does not come up, TimeoutError for a router that does not see them.
    """
    with tempfile.TemporaryDirectory(prefix="headway-mesh-") as folder:
        async with AsyncExitStack() as stack:
            device: tuple[str, ...] = ("--device-id", "shared")
            if arbiter:
                socket = f"{folder}/device.sock"
                await stack.enter_async_context(process("headway.device", "--socket", socket, "--log-level", "error"))
                device = (*device, "--device-socket", socket)
            workers = {
                kind: await stack.enter_async_context(running((*command, *device), cores))
                for kind, command in commands.items()  # one after another: each measures its costs when it starts
            }
            listen = f"unix:{folder}/router.sock"
            named = ",".join(f"{kind}={worker.address}" for kind, worker in workers.items())
            flags = ("--listen", listen, "--workers", named, "--metrics-port", "off", "--log-level", "warning")
            await stack.enter_async_context(process("services.router.main", *flags, *router_flags))
            await all_healthy(listen, len(workers))
            yield RunningMesh(listen, workers)


async def all_healthy(router: str, count: int) -> None:
    """Returns when the router sees so many healthy workers. Raises TimeoutError."""
    async with asyncio.timeout(START_S), AsyncHeadway(router) as client:
        while True:
            try:
                entries = (await client.workers()).workers
            except (HeadwayError, grpc.aio.AioRpcError):  # it does not listen yet
                entries = []
            if sum(entry.health == router_pb2.WORKER_HEALTH_HEALTHY for entry in entries) >= count:
                return
            await asyncio.sleep(0.1)


@asynccontextmanager
async def process(module: str, *flags: str) -> AsyncIterator[None]:
    """Runs a module in a process of its own for the block."""
    started = await asyncio.create_subprocess_exec(*tied((sys.executable, "-m", module, *flags)))
    try:
        yield
    finally:
        if started.returncode is None:
            started.terminate()
        await started.wait()
