import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from sum_worker import SumWorker

from headway.server import serve
from headway.telemetry import Span
from headway.v1 import image_pb2_grpc, router_pb2, router_pb2_grpc, splat_pb2_grpc, text_pb2_grpc
from services.prefix_cache.config import PrefixCacheConfig
from services.prefix_cache.main import build as build_cache
from services.router.config import RouterConfig
from services.router.main import build as build_router


class Mesh:
    """Starts real services over loopback in this process; `close` ends what still runs."""

    def __init__(self) -> None:
        self._running: list[tuple[asyncio.Event, asyncio.Task[None]]] = []
        self._channels = AsyncExitStack()
        self.router_service: Any = None
        self.router_address = ""

    async def _start(self, stop: asyncio.Event, run: Callable[[Any], Any]) -> str:
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(run(port.set_result))
        await asyncio.wait([task, port], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        self._running.append((stop, task))
        return f"127.0.0.1:{port.result()}"

    async def worker(self, *args: Any, listen: str = "127.0.0.1:0", closed: bool = False, **kwargs: Any) -> SumWorker:
        """`closed`: its engine waits for its gate."""
        worker = SumWorker(*args, **kwargs)
        if not closed:
            worker.engine.gate.set()
        worker.address = await self._start(worker.stop, partial(worker.serve, listen=listen))
        return worker

    async def end(self, worker: SumWorker) -> None:
        worker.stop.set()
        (task,) = [task for stop, task in self._running if stop is worker.stop]
        await asyncio.wait_for(task, 10)

    async def cache(self, redis_url: str, listen: str = "127.0.0.1:0", **settings: Any) -> tuple[str, asyncio.Event]:
        stop = asyncio.Event()
        config = PrefixCacheConfig(listen=listen, redis=redis_url, metrics_port=None, drain_s=0.1, **settings)
        build = partial(build_cache, config)
        run = partial(serve, config, "prefix-cache", build, span=Span.CACHE_CALL, until=stop.wait)
        return await self._start(stop, lambda ready: run(ready=ready)), stop

    async def router(
        self, *workers: SumWorker | str, healthy: int | None = None, metadata: Any = None, **settings: Any
    ) -> "Client":
        """A router over these workers, once `healthy` of them (None: all) are; `metadata` identifies who asks that."""
        stop = asyncio.Event()
        parts = [worker if isinstance(worker, str) else f"{worker.kind}={worker.address}" for worker in workers]
        config = RouterConfig(
            listen="127.0.0.1:0", workers=",".join(parts), metrics_port=None, drain_s=0.2, max_deadline_s=30, **settings
        )

        async def build(service: Any) -> Any:
            self.router_service = service
            return await build_router(config, service)

        run = partial(serve, config, "router", build, span=Span.ROUTER_CALL, until=stop.wait)
        address = self.router_address = await self._start(stop, lambda ready: run(ready=ready))
        client = Client(await self._channels.enter_async_context(grpc.aio.insecure_channel(address)), metadata)
        await client.until(lambda workers: _healthy(workers) == (len(parts) if healthy is None else healthy))
        return client

    async def close(self) -> None:
        await self._channels.aclose()
        while self._running:
            stop, task = self._running.pop()
            stop.set()
            await asyncio.wait_for(task, 10)


def _healthy(workers: Any) -> int:
    return sum(1 for worker in workers if worker.health == router_pb2.WORKER_HEALTH_HEALTHY)


class Client:
    def __init__(self, channel: grpc.aio.Channel, metadata: Any) -> None:
        self.channel, self._metadata = channel, metadata
        self.images = image_pb2_grpc.ImageGenerationStub(channel)
        self.text = text_pb2_grpc.TextGenerationStub(channel)
        self.splats = splat_pb2_grpc.SplatRenderingStub(channel)
        self.router = router_pb2_grpc.RouterStub(channel)

    async def workers(self) -> Any:
        return (
            await self.router.ListWorkers(router_pb2.ListWorkersRequest(), timeout=5, metadata=self._metadata)
        ).workers

    async def until(self, condition: Callable[[Any], bool], within_s: float = 10) -> None:
        """Asks for the workers until `condition` holds of them."""
        async with asyncio.timeout(within_s):
            while not condition(await self.workers()):
                pass


@asynccontextmanager
async def running() -> AsyncIterator[Mesh]:
    made = Mesh()
    try:
        yield made
    finally:
        await made.close()


class WorkerProcess:
    """A worker in a process of its own, to be killed or stopped."""

    def __init__(self, process: asyncio.subprocess.Process, address: str) -> None:
        self.process, self.address = process, address

    @classmethod
    async def start(cls, *arguments: str) -> "WorkerProcess":
        script = str(Path(__file__).with_name("sum_worker.py"))
        process = await asyncio.create_subprocess_exec(
            sys.executable, script, *arguments, stdout=asyncio.subprocess.PIPE, env={"PYTHONPATH": os.getcwd()}
        )
        assert process.stdout is not None
        return cls(process, f"127.0.0.1:{int(await process.stdout.readline())}")

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()


@pytest.fixture
async def worker_process() -> AsyncIterator[Callable[..., Awaitable[WorkerProcess]]]:
    started: list[WorkerProcess] = []

    async def start(*arguments: str) -> WorkerProcess:
        started.append(await WorkerProcess.start(*arguments))
        return started[-1]

    yield start
    for worker in started:
        await worker.end()


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with running() as made:
        yield made
