"""What is written to the store, over a real Redis and a real cache of a small model."""

import asyncio
import time
from collections.abc import Iterator

import numpy as np
import pytest
import redis

from headway.cost import Cost, StepCurve
from headway.local_redis import LocalRedis
from headway.prefix import BLOCK_TOKENS, block_key
from headway.telemetry import Metrics, SharedBlock
from services.text_worker.costs import TextCosts
from services.text_worker.kv.chain import Chain
from services.text_worker.kv.pages import Pages
from services.text_worker.kv.store import Holding, KvStore
from services.text_worker.kv.transfer import Layout
from services.text_worker.model.architecture import Architecture, Attention, Layer, Mlp, Rope
from services.text_worker.sharing.learned import RestoreCosts
from services.text_worker.sharing.redis_store import RedisStore
from services.text_worker.sharing.watching import StoreWatch
from services.text_worker.sharing.writing import MOST_QUEUED, BlockWriter, WritePolicy

LAYER = Layer(Attention(4, 2, 8, Rope(1e4, 8), 1.0), Mlp(8))
MODEL = Architecture("llama", 64, 32, (LAYER, LAYER), 512, 1e-5, True, frozenset())
PRINT = b"f" * 32
TOKENS = list(range(5 * BLOCK_TOKENS))
DEAR = StepCurve(((1, Cost(1e6)),))
CHEAP = StepCurve(((1, Cost(1e-6)),))


class Writing:
    """A cache that holds a prompt, and what writes its blocks."""

    def __init__(self, url: str, computing: StepCurve, sightings: int) -> None:
        self.cache = KvStore(Pages(MODEL, 9))
        self.held = Holding(Chain("tenant", PRINT))
        layout, costs = Layout.of(self.cache.pages, PRINT), RestoreCosts(Cost(0.0), 0.9)
        self.store, self.metrics = RedisStore(url, layout.stored_bytes), Metrics("test", "0")
        gauge = self.metrics.store_reachable.labels("kv")
        self.watch = StoreWatch(self.store, layout, costs, 60.0, clock=time.monotonic, gauge=gauge)
        text_costs = TextCosts(computing, computing, 64)
        policy = WritePolicy(sightings=sightings, bytes_per_s=1e9, ttl_s=60.0)
        self.writer = BlockWriter(
            self.store, self.watch, costs, text_costs, self.cache, layout, policy,
            clock=time.monotonic, metrics=self.metrics,
        )  # fmt: skip

    def compute(self, tokens: list[int]) -> tuple[bytes, ...]:
        self.cache.reserve(self.held, len(tokens))
        for number, block in enumerate(self.held.blocks):
            content = np.full((2, 2, 2, BLOCK_TOKENS, 8), number + 1, np.float32)
            self.cache.pages.write(block, content)  # type: ignore[attr-defined]
        self.cache.computed(self.held, tokens, len(tokens))
        return tuple(self.held.chain.over(tokens))

    def count(self, result: SharedBlock) -> int:
        value = self.metrics.registry.get_sample_value("headway_kv_shared_blocks_total", {"result": result})
        return int(value or 0)

    async def settle(self, ended: int) -> None:
        """Runs the writer until so many blocks met their end."""
        running = asyncio.create_task(self.writer.run())
        while sum(map(self.count, SharedBlock)) < ended:  # noqa: ASYNC110 - counters tell nobody
            await asyncio.sleep(0.005)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
def server() -> Iterator[LocalRedis]:
    with LocalRedis.start(max_memory_mib=64) as local:
        yield local


async def writing(server: LocalRedis, computing: StepCurve = DEAR, sightings: int = 1) -> Writing:
    made = Writing(server.url, computing, sightings)
    assert await made.watch.look()
    return made


async def test_a_prompt_is_written_once_and_only_when_it_was_asked_for_often_enough(server: LocalRedis) -> None:
    made = await writing(server, sightings=2)
    chain = made.compute(TOKENS)
    made.writer.saw(chain)
    assert made.writer._queue.empty()
    made.writer.saw(chain[:2])
    await made.settle(2)
    made.writer.saw(chain)
    await made.settle(5)
    made.writer.saw(chain)
    assert made.writer._queue.empty()  # all are known to be there
    with redis.Redis.from_url(server.url) as direct:
        assert all(direct.exists(block_key(block)) for block in chain)
        assert 0 < direct.ttl(block_key(chain[0])) <= 60
    layout = Layout.of(made.cache.pages, PRINT)  # type: ignore[arg-type]
    for number, stored in enumerate(await made.store.fetch(chain)):
        assert (layout.content(stored, chain[number]) == number + 1).all()
    await made.store.close()


async def test_what_others_wrote_is_not_written_again(server: LocalRedis) -> None:
    first, second = await writing(server), await writing(server)
    chain = first.compute(TOKENS)
    first.writer.saw(chain)
    await first.settle(5)
    second.compute(TOKENS)
    second.writer.saw((*chain, b"x" * 32))
    await second.settle(1)
    assert second.count(SharedBlock.WRITTEN) == 0
    assert second.count(SharedBlock.GONE) == 1
    await first.store.close()
    await second.store.close()


async def test_what_is_computed_quicker_than_restored_is_never_written(server: LocalRedis) -> None:
    made = await writing(server, CHEAP)
    made.writer.saw(made.compute(TOKENS))
    assert made.writer._queue.empty()
    await made.store.close()


async def test_a_block_that_left_the_cache_is_passed_over(server: LocalRedis) -> None:
    made = await writing(server)
    chain = made.compute(TOKENS)
    made.writer.saw(chain)
    made.cache.release(made.held)
    made.cache.pool.take(5)  # the prompt's end is given out first
    await made.settle(5)
    assert (made.count(SharedBlock.WRITTEN), made.count(SharedBlock.GONE)) == (3, 2)
    await made.store.close()


async def test_the_queue_has_an_end_and_a_store_that_is_gone_is_left_alone(server: LocalRedis) -> None:
    made = await writing(server)
    many = [number.to_bytes(32, "big") for number in range(MOST_QUEUED + 10)]
    made.writer.saw(many)
    assert made.count(SharedBlock.DROPPED) == 10
    server.process.kill()
    server.process.wait()
    assert not await made.watch.look()
    made.writer.saw([b"y" * 32])
    assert made.writer._queue.qsize() == MOST_QUEUED
    await made.store.close()
