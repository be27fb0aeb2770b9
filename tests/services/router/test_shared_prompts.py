"""A router, two text workers and a prefix cache: prompts go where they are cached, and nowhere else is worse off."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from headway.client import AsyncHeadway
from headway.local_redis import LocalRedis
from headway.prefix import CHUNK_BYTES
from headway.prompts import canonical_prompt
from headway.server import serve
from headway.telemetry import Metrics, Span
from headway.upstream import Connection, UpstreamCredentials
from headway.v1 import common_pb2, text_pb2, text_pb2_grpc, worker_pb2, worker_pb2_grpc
from services.router.prefix_watch import follow_prefixes
from services.router.prefixes import KnownPrompts, PrefixIndex
from services.text_worker.config import TextWorkerConfig
from services.text_worker.main import build

MODEL = Path(__file__).parents[3] / "models" / "text"
STORY = "The list holds numbers, and each of them is read once before the next one is written. "
LONG_S = 60.0


def request(begins: str, ends: str) -> text_pb2.GenerateRequest:
    """Prompts that begin alike for some 200 tokens."""
    return text_pb2.GenerateRequest(
        text=f"{begins}: {STORY * 13}{ends}", max_tokens=2, sampling=text_pb2.Sampling(temperature=0)
    )


async def served(channel: grpc.aio.Channel, asked: text_pb2.GenerateRequest) -> common_pb2.Served:
    call = text_pb2_grpc.TextGenerationStub(channel).Generate(asked, timeout=LONG_S)
    return [message async for message in call][-1].summary.served


async def served_directly(mesh: Any, asked: text_pb2.GenerateRequest) -> common_pb2.Served:
    """As our client does that asks the router where to go, and for no more."""
    sample = partial(mesh.router_service.metrics.registry.get_sample_value, "headway_budget_seconds_count")
    passed_on = sample({"kind": "text"})
    async with AsyncHeadway(mesh.router_address, direct=True) as direct:
        messages = [message async for message in direct.text(asked, deadline_s=LONG_S)]
    assert sample({"kind": "text"}) == passed_on
    return messages[-1].summary.served


class TextWorker:
    def __init__(self, address: str, channel: grpc.aio.Channel, about: worker_pb2.DescribeResponse) -> None:
        self.address, self.channel, self.name, self.model = address, channel, about.worker_id, about.assets[0].hash


@asynccontextmanager
async def text_worker(mesh: Any, cache: str, cache_dir: Path) -> AsyncIterator[TextWorker]:
    """With room for a few prompts."""
    stop = asyncio.Event()
    config = TextWorkerConfig(
        listen="127.0.0.1:0", metrics_port=None, threads=1, model=MODEL, cache_dir=cache_dir, kv_memory_mb=2,
        prefix_cache=cache, max_deadline_s=120, drain_s=0.2,
    )  # fmt: skip
    run = partial(serve, config, "text-worker", partial(build, config), span=Span.WORKER_CALL, until=stop.wait)
    address = await mesh._start(stop, lambda ready: run(ready=ready))
    async with grpc.aio.insecure_channel(address) as channel:
        about = await worker_pb2_grpc.WorkerStub(channel).Describe(worker_pb2.DescribeRequest(), timeout=10)
        yield TextWorker(address, channel, about)


@asynccontextmanager
async def connection_to(address: str) -> AsyncIterator[Connection]:
    connection = Connection(address, UpstreamCredentials())
    yield connection
    await connection.close()


class Follower:
    """Learns from the prefix cache as a router does."""

    def __init__(self, connection: Connection, model: str) -> None:
        self._index, self._model = PrefixIndex(), model
        self.metrics = Metrics("test", "0")
        self._task = asyncio.create_task(follow_prefixes(connection, UpstreamCredentials(), self._index, self.metrics))

    def held(self, asked: text_pb2.GenerateRequest, worker: TextWorker) -> int:
        known = KnownPrompts(self._index, None)
        return known.shared(canonical_prompt(asked), self._model, "").held_bytes(worker.name)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def blocks(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("headway_held_prompt_blocks")


async def test_prompts_go_where_they_are_cached(mesh: Any, tmp_path: Path) -> None:
    with LocalRedis.start(max_memory_mib=16) as redis:
        cache, stop_cache = await mesh.cache(redis.url)
        async with (
            text_worker(mesh, cache, tmp_path) as one,
            text_worker(mesh, cache, tmp_path) as two,
            connection_to(cache) as to_cache,
        ):
            router = await mesh.router(f"text={one.address}", f"text={two.address}", prefix_cache=cache)
            follower = Follower(to_cache, one.model)

            async def known(asked: text_pb2.GenerateRequest, worker: TextWorker) -> None:
                """Until the follower, and with it the router, knows that a worker holds a prompt, and that all rest."""
                await until(lambda: follower.held(asked, worker) >= 4 * CHUNK_BYTES)
                await until(lambda: blocks(follower.metrics) == blocks(mesh.router_service.metrics))
                await router.until(lambda workers: not any(each.in_flight for each in workers), LONG_S)

            for worker, begins in ((one, "First"), (two, "Second")):  # one of them is not where a tie would be broken
                first = await served(worker.channel, request(begins, "a"))
                assert first.cached_tokens == 0
                await known(request(begins, "a"), worker)
                second = await served(router.channel, request(begins, "b, and this ends otherwise"))
                assert second.worker_id == worker.name
                assert second.cached_tokens >= 200
                await router.until(lambda workers: not any(each.in_flight for each in workers), LONG_S)
                straight = await served_directly(mesh, request(begins, "c, which goes straight to the worker"))
                assert straight.worker_id == worker.name
                assert straight.cached_tokens >= 200

            for ends in ("c", "d", "e", "f"):  # other prompts take the room
                await served(one.channel, request(ends, ends))
            await until(lambda: follower.held(request("First", "a"), one) == 0)
            assert follower.held(request("Second", "a"), two) > 0

            stop_cache.set()
            await until(lambda: blocks(mesh.router_service.metrics) == 0)
            third = await served(router.channel, request("Third", "a"))
            assert third.worker_id in (one.name, two.name)
            await mesh.cache(redis.url, listen=cache)
            asked, there = request("Third", "b"), one if third.worker_id == one.name else two
            await known(asked, there)
            assert (await served(router.channel, asked)).worker_id == there.name
            await follower.close()
