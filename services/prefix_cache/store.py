"""Results in Redis, as hashes of quality and entry."""

import logging
from collections.abc import Awaitable
from typing import cast

from redis.exceptions import ResponseError

from headway.v1 import prefix_cache_pb2
from services.prefix_cache.entry import DamagedEntry, pack, quality_text, unpack
from services.prefix_cache.link import RedisLink

log = logging.getLogger(__name__)

_PREFIX = b"headway:result:1:"

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


class ResultStore:
    """Results by key; every method takes the longest that it may wait."""

    def __init__(self, link: RedisLink) -> None:
        self._link, self._redis = link, link.redis
        self._put = link.redis.register_script(_PUT)

    async def get(self, key: bytes, *, timeout_s: float) -> prefix_cache_pb2.StoredResult | None:
        """The result under `key`; None when there is none. A damaged one counts as none and is deleted.

        Raises `StoreUnavailable`.
        """
        return await self._link.bounded(self._read(key), timeout_s)

    async def put(self, key: bytes, result: prefix_cache_pb2.StoredResult, *, ttl_s: float, timeout_s: float) -> bool:
        """Keeps `result` unless one as good is there; says whether it did. Raises `StoreUnavailable`."""
        arguments: list[bytes | int] = [quality_text(result.quality), pack(key, result), max(1, round(ttl_s * 1000))]
        stored = await self._link.bounded(self._put(keys=[_PREFIX + key], args=arguments), timeout_s)
        return bool(stored)

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
