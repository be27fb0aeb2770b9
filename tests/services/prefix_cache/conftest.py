import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
import pytest

from headway.local_redis import LocalRedis
from headway.server import serve
from headway.telemetry import Span
from services.prefix_cache.config import PrefixCacheConfig
from services.prefix_cache.main import build


class Valkey:
    """A real server that can be killed and started again at the same socket."""

    def __init__(self) -> None:
        self.local = LocalRedis.start(max_memory_mib=64)
        self.url = self.local.url

    def kill(self) -> None:
        self.local.process.kill()
        self.local.process.wait()

    def start_again(self) -> None:
        self.local.process = subprocess.Popen(self.local.process.args, cwd=self.local.folder)
        self.local._wait_until_ready(self.local.folder)

    def __enter__(self) -> "Valkey":
        return self

    def __exit__(self, *_: object) -> None:
        self.local.stop()


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[grpc.aio.Channel]:
    """A real prefix cache over loopback."""
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    config = PrefixCacheConfig(listen="127.0.0.1:0", metrics_port=None, drain_s=0.2, **settings)
    task = asyncio.create_task(
        serve(
            config, "prefix-cache", partial(build, config), span=Span.CACHE_CALL, ready=port.set_result, until=stop.wait
        )
    )
    await asyncio.wait([task, port], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port.result()}") as channel:
        yield channel
    stop.set()
    await asyncio.wait_for(task, 10)


@pytest.fixture
def serving_cache() -> Any:
    return serving
