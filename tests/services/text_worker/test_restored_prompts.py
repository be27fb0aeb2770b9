"""Two workers and a real Redis between them: what one computed the other restores, and nothing that goes wrong there is
seen in an answer."""

import asyncio
import hashlib
import struct
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from sharing_rig import BLOCKS, PROMPT, Wire, Worker, slow_to_compute, until, worker

from headway.local_redis import LocalRedis
from headway.prefix import BLOCK_TOKENS, HEADER_BYTES, block_key
from headway.server import serve
from headway.telemetry import Span
from services.prefix_cache.config import PrefixCacheConfig
from services.prefix_cache.main import build


@pytest.fixture
def store() -> Iterator[LocalRedis]:
    with LocalRedis.start(max_memory_mib=64) as server:
        yield server


@pytest.fixture(autouse=True)
def computing_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_to_compute(monkeypatch)


@asynccontextmanager
async def two(tmp_path: Path, first: str, second: str, **options: Any) -> AsyncIterator[tuple[Worker, Worker]]:
    """Two workers that know what their stores cost."""
    async with (
        worker(tmp_path, kv_store=first, **options) as here,
        worker(tmp_path, kv_store=second, **options) as there,
    ):
        await until(lambda: here.reachable and there.reachable)
        yield here, there


@asynccontextmanager
async def prefix_cache(redis_url: str) -> AsyncIterator[str]:
    """The service in front of a Redis; gives its address."""
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    config = PrefixCacheConfig(listen="127.0.0.1:0", metrics_port=None, drain_s=0.2, redis=redis_url)
    serving = serve(
        config, "prefix-cache", partial(build, config), span=Span.CACHE_CALL, ready=port.set_result, until=stop.wait
    )
    task = asyncio.create_task(serving)
    yield f"127.0.0.1:{await port}"
    stop.set()
    await asyncio.wait_for(task, 10)


async def written(here: Worker) -> list[int]:
    """The first worker computes the prompt and writes its blocks; gives the answer's tokens."""
    answer = await here.ask()
    assert answer.summary.served.cached_tokens == 0
    await until(lambda: here.blocks("written") == BLOCKS)
    return answer.token_ids


async def test_a_worker_restores_what_it_never_computed(tmp_path: Path, store: LocalRedis) -> None:
    async with two(tmp_path, store.url, store.url) as (here, there):
        expected = await written(here)
        answer = await there.ask()
        assert answer.token_ids == expected
        assert answer.summary.served.cached_tokens == BLOCKS * BLOCK_TOKENS
        assert (there.blocks("restored"), there.restores("restored")) == (BLOCKS, 1)
        longer = await there.ask((*PROMPT, *PROMPT[:90]))  # its beginning is in the cache now, its end nowhere
        assert longer.summary.served.cached_tokens == BLOCKS * BLOCK_TOKENS
        assert there.restores("absent") <= 1


async def test_the_way_through_the_prefix_cache_brings_the_same(tmp_path: Path, store: LocalRedis) -> None:
    async with (
        prefix_cache(store.url) as address,
        two(tmp_path, "grpc", store.url, prefix_cache=address) as (one, two_),
    ):
        expected = await written(one)
        answer = await two_.ask()
        assert (answer.token_ids, two_.blocks("restored")) == (expected, BLOCKS)
    async with prefix_cache(store.url) as address, worker(tmp_path, kv_store="grpc", prefix_cache=address) as third:
        await until(lambda: third.reachable)
        answer = await third.ask()
        assert (answer.token_ids, third.blocks("restored")) == (expected, BLOCKS)


async def test_answers_and_callers_that_begin_alike_restore_once(tmp_path: Path, store: LocalRedis) -> None:
    async with two(tmp_path, store.url, store.url) as (here, there):
        expected = await written(here)
        answers = await asyncio.gather(*(there.ask() for _ in range(4)))
        assert all(answer.token_ids == expected for answer in answers)
        assert all(answer.summary.served.cached_tokens >= BLOCKS * BLOCK_TOKENS for answer in answers)
        assert there.blocks("restored") == BLOCKS


async def test_another_tenant_never_restores(tmp_path: Path, store: LocalRedis) -> None:
    tenants, listed = ("one", "other"), tmp_path / "keys.yaml"
    listed.write_text("".join(f"{name}: [{hashlib.sha256(name.encode()).hexdigest()}]\n" for name in tenants))
    shown = {name: {"metadata": [("authorization", f"Bearer {name}")]} for name in tenants}
    async with two(tmp_path, store.url, store.url, api_keys=listed) as (here, there):
        expected = (await here.ask(**shown["one"])).token_ids
        await until(lambda: here.blocks("written") == BLOCKS)
        foreign = await there.ask(**shown["other"])
        assert (foreign.token_ids, foreign.summary.served.cached_tokens) == (expected, 0)
        assert there.blocks("restored") == 0
        own = await there.ask(**shown["one"])
        assert (own.token_ids, own.summary.served.cached_tokens) == (expected, BLOCKS * BLOCK_TOKENS)


def forged(stored: bytes, **fields: int) -> bytes:
    """The payload with another version or element, and a checksum that fits."""
    head = bytearray(stored[: HEADER_BYTES - 4])
    if "version" in fields:
        struct.pack_into("<H", head, 4, fields["version"])
    if "element" in fields:
        struct.pack_into("<H", head, 6, fields["element"])
    payload = stored[HEADER_BYTES:]
    return bytes(head) + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload


@pytest.mark.parametrize("damage", ["flipped", "foreign", "version", "element", "short", "no string"])
async def test_what_is_poisoned_is_computed_and_counted(damage: str, tmp_path: Path, store: LocalRedis) -> None:
    async with two(tmp_path, store.url, store.url) as (here, there):
        expected = await written(here)
        chain = here.chain(PROMPT)
        with redis.Redis.from_url(store.url) as direct:
            stored = direct.get(block_key(chain[3]))
            assert isinstance(stored, bytes)
            match damage:
                case "flipped":
                    direct.set(block_key(chain[3]), stored[:-1] + bytes([stored[-1] ^ 1]))
                case "foreign":
                    direct.copy(block_key(chain[4]), block_key(chain[3]), replace=True)
                case "version":
                    direct.set(block_key(chain[3]), forged(stored, version=2))
                case "element":
                    direct.set(block_key(chain[3]), forged(stored, element=9))
                case "short":
                    direct.set(block_key(chain[3]), stored[:-4])
                case _:
                    direct.delete(block_key(chain[3]))
                    direct.lpush(block_key(chain[3]), b"x")
            answer = await there.ask()
            assert answer.token_ids == expected
            assert answer.summary.served.cached_tokens == 3 * BLOCK_TOKENS
            read = damage not in ("short", "no string")  # what has not a block's size is never read
            assert there.blocks("damaged") == int(read)
            if read:
                await until(lambda: direct.get(block_key(chain[3])) == stored)  # this worker wrote it anew


async def test_redis_gone_or_cut_midway_costs_no_answer(tmp_path: Path, store: LocalRedis) -> None:
    socket = store.url.removeprefix("unix://")
    async with Wire(socket, tmp_path) as wire, two(tmp_path, store.url, wire.url) as (here, there):
        expected = await written(here)
        wire.left_bytes = 100_000  # of 1.2 MB
        answer = await there.ask()
        assert answer.token_ids == expected
        assert there.blocks("damaged") == 0
        assert there.restores("restored") == 0
        await until(lambda: not there.reachable)
        store.process.kill()
        store.process.wait()
        await until(lambda: not here.reachable)
        for one in (here, there):
            assert (await one.ask(PROMPT[1:])).summary.served.cached_tokens == 0
        assert there.restores("failed") <= 1  # who is known to be gone is not asked


async def test_redis_that_stalls_is_given_up_and_used_again_when_it_answers(tmp_path: Path, store: LocalRedis) -> None:
    socket = store.url.removeprefix("unix://")
    async with Wire(socket, tmp_path) as wire, two(tmp_path, store.url, wire.url) as (here, there):
        expected = await written(here)
        wire.flows.clear()
        answer = await there.ask()
        assert answer.token_ids == expected
        assert answer.summary.served.cached_tokens == 0
        await until(lambda: not there.reachable)
        assert there.restores("late") + there.restores("failed") == 1
        wire.flows.set()
        await until(lambda: there.reachable)


async def test_redis_that_is_full_takes_nothing_and_costs_no_answer(tmp_path: Path, store: LocalRedis) -> None:
    async with two(tmp_path, store.url, store.url) as (here, there):
        with redis.Redis.from_url(store.url) as direct:
            direct.config_set("maxmemory-policy", "noeviction")
            direct.config_set("maxmemory", "1")
        first = await here.ask()
        await until(lambda: here.blocks("dropped") == BLOCKS)
        assert (await there.ask()).token_ids == first.token_ids
        assert here.reachable
