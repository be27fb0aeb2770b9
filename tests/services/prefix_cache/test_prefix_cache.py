"""The prefix cache over a real Redis, killed and started again."""

import asyncio
from typing import Any

import grpc
import pytest
import redis

from headway.config import ConfigError, read
from headway.errors import RemoteError, StoreUnavailable, from_rpc_error
from headway.telemetry import Metrics
from headway.v1 import errors_pb2, prefix_cache_pb2, prefix_cache_pb2_grpc
from services.prefix_cache.config import PrefixCacheConfig
from services.prefix_cache.link import RedisLink
from services.prefix_cache.store import ResultStore

KEY = bytes(range(32))
ENTRY = b"headway:result:1:" + KEY


def put_request(quality: float = 1.0, text: bytes = b"answer", ttl_s: float | None = None, key: bytes = KEY) -> Any:
    result = prefix_cache_pb2.StoredResult(messages=[text], quality=quality)
    request = prefix_cache_pb2.PutResultRequest(key=key, result=result)
    if ttl_s is not None:
        request.ttl.FromNanoseconds(round(ttl_s * 1e9))
    return request


class Cache:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = prefix_cache_pb2_grpc.PrefixCacheStub(channel)

    async def put(self, *args: Any, **kwargs: Any) -> bool:
        return (await self.stub.PutResult(put_request(*args, **kwargs), timeout=5)).stored

    async def get(self, key: bytes = KEY) -> Any:
        response = await self.stub.GetResult(prefix_cache_pb2.GetResultRequest(key=key), timeout=5)
        return response.result if response.HasField("result") else None

    async def failing(self, method: str, request: Any, timeout_s: float = 5) -> RemoteError:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await getattr(self.stub, method)(request, timeout=timeout_s)
        return from_rpc_error(failure.value)


async def test_a_result_comes_back_and_a_better_one_alone_replaces_it(serving_cache: Any, valkey: Any) -> None:
    async with serving_cache(redis=valkey.url) as channel:
        cache = Cache(channel)
        assert await cache.get() is None
        assert await cache.put(0.8, b"good")
        assert not await cache.put(0.8, b"as good")
        assert not await cache.put(0.5, b"worse")
        assert (await cache.get()).messages == [b"good"]
        assert await cache.put(1.0, b"best")
        assert ((await cache.get()).messages, (await cache.get()).quality) == ([b"best"], 1.0)


async def test_of_many_writers_at_once_the_best_stays(serving_cache: Any, valkey: Any) -> None:
    async with serving_cache(redis=valkey.url) as channel:
        cache = Cache(channel)
        await asyncio.gather(*(cache.put(quality / 40, str(quality).encode()) for quality in range(41)))
        assert (await cache.get()).messages == [b"40"]


async def test_results_lapse(serving_cache: Any, valkey: Any) -> None:
    async with serving_cache(redis=valkey.url, result_ttl_s=500, max_result_ttl_s=1000) as channel:
        cache = Cache(channel)
        with redis.Redis.from_url(valkey.url) as direct:
            await cache.put()
            assert 490_000 < direct.pttl(ENTRY) <= 500_000
            await cache.put(1.0, ttl_s=7, key=bytes(32))
            assert 6_000 < direct.pttl(b"headway:result:1:" + bytes(32)) <= 7_000


async def test_damaged_and_foreign_entries_are_misses_and_are_deleted(serving_cache: Any, valkey: Any) -> None:
    async with serving_cache(redis=valkey.url) as channel:
        cache = Cache(channel)
        with redis.Redis.from_url(valkey.url) as direct:
            await cache.put()
            stored = direct.hget(ENTRY, "v")
            direct.hset(ENTRY, "v", stored[:-1] + b"!")
            assert await cache.get() is None
            assert not direct.exists(ENTRY)
            await cache.put()
            direct.hset(ENTRY, "q", "9")  # would keep every better result out
            assert await cache.get() is None
            assert await cache.put()
            direct.set(ENTRY, "not a hash")
            assert await cache.get() is None
            assert not direct.exists(ENTRY)
            direct.set(ENTRY, "not a hash")
            assert await cache.put()


async def test_redis_gone_is_said_and_back_again_is_used(serving_cache: Any, valkey: Any) -> None:
    async with serving_cache(redis=valkey.url) as channel:
        cache = Cache(channel)
        assert await cache.put()
        valkey.kill()
        for _ in range(2):
            error = await cache.failing("GetResult", prefix_cache_pb2.GetResultRequest(key=KEY))
            assert error.reason == errors_pb2.ERROR_REASON_STORE_UNAVAILABLE
            assert error.status is grpc.StatusCode.UNAVAILABLE
            assert error.retry_after_s is not None
        valkey.start_again()
        assert await cache.get() is None
        assert await cache.put()
        assert await cache.get() is not None


async def test_a_redis_that_hangs_costs_no_more_than_the_budget(serving_cache: Any) -> None:
    accepted = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        await reader.read()  # until the client gives up
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server, serving_cache(redis=f"redis://{host}:{port}", redis_timeout_ms=60_000) as channel:
        error = await Cache(channel).failing("GetResult", prefix_cache_pb2.GetResultRequest(key=KEY), timeout_s=0.4)
    assert accepted.is_set()
    assert error.reason in (errors_pb2.ERROR_REASON_STORE_UNAVAILABLE, errors_pb2.ERROR_REASON_EXPIRED)


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("key", put_request(key=b"short")),
        ("result.messages", prefix_cache_pb2.PutResultRequest(key=KEY)),
        ("result.messages", put_request(text=bytes(3 << 10))),
        ("result.quality", put_request(1.5)),
        ("result.quality", put_request(float("nan"))),
        ("ttl", put_request(ttl_s=-1)),
        ("ttl", put_request(ttl_s=5000)),
    ],
)
async def test_bad_input_names_its_field(serving_cache: Any, valkey: Any, field: str, request_: Any) -> None:
    settings = {"result_ttl_s": 10, "max_result_ttl_s": 100, "max_result_kib": 2}
    async with serving_cache(redis=valkey.url, **settings) as channel:
        error = await Cache(channel).failing("PutResult", request_)
    assert error.reason == errors_pb2.ERROR_REASON_BAD_INPUT
    assert list(error.violations) == [field]


@pytest.mark.parametrize("url", ["http://host", "localhost:6379", ""])
def test_a_wrong_url_stops_the_start(url: str) -> None:
    with pytest.raises(ConfigError, match="redis"):
        read(PrefixCacheConfig, ["--redis", url], prog="headway-prefix-cache", env={})


def test_ttls_must_agree() -> None:
    with pytest.raises(ConfigError, match="result_ttl_s"):
        read(PrefixCacheConfig, ["--result-ttl-s", "100", "--max-result-ttl-s", "10"], prog="p", env={})


async def test_the_metric_says_whether_redis_answers(valkey: Any) -> None:
    reachable = Metrics("prefix-cache", "0").store_reachable.labels("cache")
    link = RedisLink(valkey.url, connections=2, reachable=reachable)
    store = ResultStore(link)
    assert await store.get(KEY, timeout_s=5) is None
    assert reachable._value.get() == 1
    valkey.kill()
    with pytest.raises(StoreUnavailable):
        await store.get(KEY, timeout_s=5)
    assert reachable._value.get() == 0
    valkey.start_again()
    assert await store.get(KEY, timeout_s=5) is None
    assert reachable._value.get() == 1
    await link.close()
