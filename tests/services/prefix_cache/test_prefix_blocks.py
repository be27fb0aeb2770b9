"""Prefix blocks over a real Redis, and the directory of who holds which prefixes."""

import asyncio
import hashlib
from typing import Any

import grpc
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.errors import from_rpc_error
from headway.prefix import ElementType, PayloadHeader, block_key, pack_header, unpack
from headway.v1 import errors_pb2, prefix_cache_pb2, prefix_cache_pb2_grpc
from services.prefix_cache.directory import MOST_EVENTS, Directory

FINGERPRINT = b"f" * 32


def name(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def block(number: int, tokens: int = 2) -> prefix_cache_pb2.Block:
    header = PayloadHeader(name(number), FINGERPRINT, ElementType.FLOAT32, 1, 1, tokens, 4)
    payload = bytes([number % 256]) * header.payload_bytes
    return prefix_cache_pb2.Block(hash=name(number), payload=pack_header(header, payload) + payload)


def storing(*blocks: prefix_cache_pb2.Block, ttl_s: int = 60) -> prefix_cache_pb2.StoreRequest:
    request = prefix_cache_pb2.StoreRequest(blocks=blocks)
    request.ttl.FromSeconds(ttl_s)
    return request


def fetching(*numbers: int) -> prefix_cache_pb2.FetchRequest:
    return prefix_cache_pb2.FetchRequest(hashes=[name(number) for number in numbers])


async def test_blocks_come_back_in_order_up_to_the_first_that_is_missing(serving_cache: Any, valkey: Any) -> None:
    async with serving_cache(redis=valkey.url) as channel:
        stub = prefix_cache_pb2_grpc.PrefixCacheStub(channel)
        assert (await stub.Store(storing(block(0), block(1), block(3)), timeout=5)).stored == 3
        assert (await stub.Store(storing(block(1), block(4)), timeout=5)).stored == 1
        found = (await stub.Fetch(fetching(0, 1, 2, 3), timeout=5)).blocks
        assert [found_.hash for found_ in found] == [name(0), name(1)]
        _, payload = unpack(found[1].payload, block=name(1), fingerprint=FINGERPRINT)
        assert bytes(payload) == bytes([1]) * len(payload)
        assert (await stub.Fetch(fetching(9), timeout=5)).blocks == []


async def test_an_answer_is_one_message_however_much_is_there(serving_cache: Any, valkey: Any) -> None:
    large = 30_000  # tokens: about 0.9 MiB a block
    async with serving_cache(redis=valkey.url) as channel:
        stub = prefix_cache_pb2_grpc.PrefixCacheStub(channel)
        for number in range(4):
            await stub.Store(storing(block(number, large)), timeout=5)
        assert len((await stub.Fetch(fetching(0, 1, 2, 3), timeout=5)).blocks) == 2


async def test_damaged_and_foreign_blocks_are_the_readers_to_find_and_redis_may_go(
    serving_cache: Any, valkey: Any
) -> None:
    async with serving_cache(redis=valkey.url, redis_timeout_ms=200) as channel:
        stub = prefix_cache_pb2_grpc.PrefixCacheStub(channel)
        direct = redis.Redis.from_url(valkey.url)
        direct.hset(block_key(name(0)), "not", "a string")
        assert (await stub.Fetch(fetching(0), timeout=5)).blocks == []
        direct.close()
        valkey.kill()
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.Fetch(fetching(0), timeout=5)
        assert from_rpc_error(failure.value).reason == errors_pb2.ERROR_REASON_STORE_UNAVAILABLE


def broken(payload: bytes, hash_: bytes = name(0)) -> prefix_cache_pb2.StoreRequest:
    return storing(prefix_cache_pb2.Block(hash=hash_, payload=payload))


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("Fetch", prefix_cache_pb2.FetchRequest(), "hashes"),
        ("Fetch", prefix_cache_pb2.FetchRequest(hashes=[b"short"]), "hashes"),
        ("Fetch", prefix_cache_pb2.FetchRequest(hashes=[name(0)] * 65), "hashes"),
        ("Store", storing(), "blocks"),
        ("Store", broken(b""), "blocks.payload"),
        ("Store", broken(b"x" * 400), "blocks.payload"),
        ("Store", broken(block(1).payload), "blocks.payload"),
        ("Store", broken(block(0).payload[:-1] + b"!"), "blocks.payload"),
        ("Store", broken(block(0).payload, b"short"), "blocks.hash"),
        ("Store", storing(block(0), ttl_s=0), "ttl"),
        ("Store", storing(block(0), ttl_s=10**9), "ttl"),
        ("Store", storing(*[block(number, 30_000) for number in range(3)]), "blocks"),
        ("Publish", prefix_cache_pb2.PublishRequest(), "worker_id"),
        ("Publish", prefix_cache_pb2.PublishRequest(worker_id="w"), "sequence"),
        ("Publish", prefix_cache_pb2.PublishRequest(worker_id="w", sequence=1), "lease"),
    ],
)
async def test_bad_requests_name_their_field(
    serving_cache: Any, valkey: Any, method: str, request_: Any, field: str
) -> None:
    async with serving_cache(redis=valkey.url) as channel:
        stub = prefix_cache_pb2_grpc.PrefixCacheStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await getattr(stub, method)(request_, timeout=5)
        assert list(from_rpc_error(failure.value).violations) == [field]


class Now:
    s = 0.0

    def __call__(self) -> float:
        return self.s


def report(sequence: int, *numbers: int, removed: bool = False, snapshot: bool = False, worker: str = "w") -> Any:
    events = [
        prefix_cache_pb2.PrefixEvent(token_chain=name(number), removed=removed, tokens=32, chunk_chain=[name(-number)])
        for number in numbers
    ]
    request = prefix_cache_pb2.PublishRequest(worker_id=worker, sequence=sequence, snapshot=snapshot, events=events)
    request.lease.FromSeconds(10)
    return request


class Follower:
    """What a router makes of the reports that it is told."""

    def __init__(self) -> None:
        self.held: dict[str, set[bytes]] = {}

    def take(self, told: prefix_cache_pb2.PublishRequest) -> None:
        held = set() if told.snapshot else self.held.get(told.worker_id, set())
        for event in told.events:
            (held.discard if event.removed else held.add)(event.token_chain)
        self.held[told.worker_id] = held


async def followed(watcher: Any, follower: Follower) -> None:
    while watcher._queue.qsize():
        follower.take(await watcher.next())


async def test_a_gap_asks_for_a_snapshot_and_a_lapsed_lease_clears_the_worker() -> None:
    now = Now()
    directory, follower = Directory(now), Follower()
    watcher = directory.watch()
    assert directory.publish(report(1, 1))  # nothing is known of this worker yet
    assert not directory.publish(report(1, 1, 2, snapshot=True))
    assert not directory.publish(report(2, 1, removed=True))
    assert directory.publish(report(4, 3))  # 3 is missing
    await followed(watcher, follower)
    assert follower.held == {"w": {name(2)}}
    now.s = 10.0
    directory.lapse()
    await followed(watcher, follower)
    assert follower.held == {"w": set()}
    assert directory.publish(report(5, 1))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.booleans()), max_size=30), st.integers(0, 30))
def test_who_comes_late_knows_what_all_know(steps: list[tuple[int, bool, bool]], late: int) -> None:
    async def check() -> None:
        directory, first, second = Directory(Now()), Follower(), Follower()
        watchers = [(directory.watch(), first)]
        directory.publish(report(1, snapshot=True))
        for number, (prefix, removed, snapshot) in enumerate(steps):
            if number == late:
                watchers.append((directory.watch(), second))
            directory.publish(report(number + 2, prefix, removed=removed and not snapshot, snapshot=snapshot))
        if len(watchers) == 1:
            watchers.append((directory.watch(), second))
        for watcher, follower in watchers:
            await followed(watcher, follower)
        assert first.held == second.held

    asyncio.run(check())


async def test_many_prefixes_are_told_in_parts_and_who_does_not_keep_up_is_cut_off() -> None:
    directory, follower = Directory(Now()), Follower()
    directory.publish(report(1, snapshot=True))
    for part in range(3):
        directory.publish(report(part + 2, *range(part * MOST_EVENTS, (part + 1) * MOST_EVENTS)))
    watcher = directory.watch()
    assert watcher._queue.qsize() == 3
    await followed(watcher, follower)
    assert len(follower.held["w"]) == 3 * MOST_EVENTS
    for sequence in range(5, 5 + 4097):
        directory.publish(report(sequence, 1))
    with pytest.raises(Exception, match="watch again"):
        await watcher.next()


async def test_routers_watch_over_the_wire(serving_cache: Any, valkey: Any) -> None:
    async with serving_cache(redis=valkey.url) as channel:
        stub, follower = prefix_cache_pb2_grpc.PrefixCacheStub(channel), Follower()
        assert not (await stub.Publish(report(1, 1, 2, snapshot=True), timeout=5)).need_snapshot
        watching = stub.Watch(prefix_cache_pb2.WatchPrefixesRequest(), timeout=20)
        follower.take((await watching.read()).report)
        await stub.Publish(report(2, 2, removed=True), timeout=5)
        follower.take((await watching.read()).report)
        assert follower.held == {"w": {name(1)}}
        watching.cancel()
