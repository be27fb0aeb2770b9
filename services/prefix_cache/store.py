"""Results in Redis. Redis gone means a quick `StoreUnavailable`, never a wait beyond the call's budget."""

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any, Protocol, TypeVar, cast

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from headway.errors import StoreUnavailable
from headway.v1 import prefix_cache_pb2
from services.prefix_cache.entry import DamagedEntry, pack, quality_text, unpack

log = logging.getLogger(__name__)

T = TypeVar("T")

_PREFIX = b"headway:result:1:"
_RETRY_AFTER_S = 1.0

# One script, so that of two writers at once the better result stays. KEYS: entry. ARGV: quality, entry, TTL in ms.
_PUT = """
if redis.call('TYPE', KEYS[1]).ok == 'hash' then
  local quality = tonumber(redis.call('HGET', KEYS[1], 'q'))
  if quality and quality >= tonumber(ARGV[1]) then return 0 end
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'q', ARGV[1], 'v', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""


class ReachableGauge(Protocol):
    """Is told whether the store answers: 1 or 0."""

    def set(self, value: float) -> None: ...


class ResultStore:
    """Results by key. Reconnects by itself; every method takes the longest that it may wait."""

    def __init__(self, url: str, *, connections: int, reachable: ReachableGauge) -> None:
        # One retry at once: a connection that Redis closed while it lay idle is no failure.
        pool: Any = aioredis.BlockingConnectionPool.from_url(
            url, max_connections=connections, timeout=None, protocol=2, retry=Retry(NoBackoff(), 1)
        )
        self._redis = aioredis.Redis.from_pool(pool)
        self._put = self._redis.register_script(_PUT)
        self._reachable = reachable

    async def get(self, key: bytes, *, timeout_s: float) -> prefix_cache_pb2.StoredResult | None:
        """The result under `key`; None when there is none. A damaged one counts as none and is deleted.

        Raises `StoreUnavailable`.
        """
        return await self._bounded(self._read(key), timeout_s)

    async def put(self, key: bytes, result: prefix_cache_pb2.StoredResult, *, ttl_s: float, timeout_s: float) -> bool:
        """Keeps `result` unless one as good is there; says whether it did. Raises `StoreUnavailable`."""
        arguments: list[bytes | int] = [quality_text(result.quality), pack(key, result), max(1, round(ttl_s * 1000))]
        stored = await self._bounded(self._put(keys=[_PREFIX + key], args=arguments), timeout_s)
        return bool(stored)

    async def watch(self, interval_s: float, timeout_s: float) -> None:
        """Asks every `interval_s` whether the store answers, for the metric, until cancelled."""
        while True:
            try:
                await self._bounded(cast(Awaitable[Any], self._redis.ping()), timeout_s)
            except StoreUnavailable as error:
                log.debug("%s", error.message)
            await asyncio.sleep(interval_s)

    async def close(self) -> None:
        """Closes the connections."""
        await self._redis.aclose()

    async def _read(self, key: bytes) -> prefix_cache_pb2.StoredResult | None:
        name = _PREFIX + key
        try:
            quality, stored = await cast(Awaitable[list[bytes | None]], self._redis.hmget(name, ["q", "v"]))
            return None if quality is None and stored is None else unpack(stored or b"", key, quality)
        except DamagedEntry as error:
            log.warning("a stored result is damaged (%s) and is deleted", error)
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            log.warning("a foreign value stands where a result should, and is deleted")
        await self._redis.delete(name)
        return None

    async def _bounded(self, answer: Awaitable[T], timeout_s: float) -> T:
        try:
            async with asyncio.timeout(timeout_s):
                result = await answer
        except TimeoutError as error:
            self._reachable.set(0)
            raise StoreUnavailable(
                f"Redis did not answer within {timeout_s * 1000:.0f} ms", retry_after_s=_RETRY_AFTER_S
            ) from error
        except (RedisError, OSError) as error:
            self._reachable.set(0)
            raise StoreUnavailable(
                f"Redis cannot be used: {type(error).__name__}", retry_after_s=_RETRY_AFTER_S
            ) from error
        self._reachable.set(1)
        return result
