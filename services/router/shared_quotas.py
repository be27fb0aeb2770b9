"""Quotas that several routers count together: soft state in Redis, never in the path of a call.

A router decides by its own buckets. Every tenth of a second it tells Redis what each tenant used since, and takes over
the common level. Redis gone or slow costs no call anything: after a second each router goes on with its share of every
rate, one over the routers that were last heard of, until Redis answers again.
"""

import asyncio
import hashlib
import logging
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from redis.exceptions import RedisError

from headway.redis_client import redis_client
from services.router.quotas import Quotas, Use

log = logging.getLogger(__name__)

INTERVAL_S = 0.1
_TIMEOUT_S = 0.25
_ALIVE_S = 5.0
"""A router that has said nothing for so long does not count."""
_MOST_ROUTERS = 1000
_AT_ONCE = 256
"""Tenants in one message."""
_ROUTERS = "headway:quota:routers"

_SCRIPT = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
if redis.call('TYPE', KEYS[1]).ok ~= 'zset' then redis.call('DEL', KEYS[1]) end
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
redis.call('ZREMRANGEBYSCORE', KEYS[1], '(' .. (now + 1), '+inf')
redis.call('PEXPIRE', KEYS[1], 60000)
local told = {redis.call('ZCARD', KEYS[1])}
for i = 2, #KEYS do
  local rate, burst, used = tonumber(ARGV[3 * i - 3]), tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1])
  if redis.call('TYPE', KEYS[i]).ok ~= 'hash' then redis.call('DEL', KEYS[i]) end
  local kept = redis.call('HMGET', KEYS[i], 'level', 'at')
  local level, at = tonumber(kept[1] or ''), tonumber(kept[2] or '')
  if not (level and at and level > -1e12 and level <= burst and at >= 0 and at <= now) then level, at = burst, now end
  level = math.min(burst, math.min(burst, level + (now - at) * rate) - used)
  redis.call('HSET', KEYS[i], 'level', string.format('%.6f', level), 'at', string.format('%.6f', now))
  redis.call('PEXPIRE', KEYS[i], math.floor(math.min(86400000, 60000 + 1000 * (burst - level) / rate)))
  told[i] = string.format('%.6f', level)
end
return told
"""
"""What is there may have been written by anybody: whatever is no level is taken for a bucket that nobody used."""


class ReachableGauge(Protocol):
    """Is told whether the store answers: 1 or 0."""

    def set(self, value: float) -> None: ...


class SharedQuotas:
    """Keeps a router's quotas in step with those of the others. Belongs to one event loop."""

    def __init__(self, url: str, quotas: Quotas, reachable: ReachableGauge) -> None:
        self._redis = redis_client(url, connections=1)
        self._script = self._redis.register_script(_SCRIPT)
        self._quotas, self._reachable = quotas, reachable
        self._name = secrets.token_hex(8)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.sync()
            await asyncio.sleep(INTERVAL_S)

    async def sync(self) -> bool:
        """Tells what was used and takes over what is left; False when Redis did not answer as it should.

        What was used then is not told again: by the time that Redis is back, it has been paid for.
        """
        uses = self._quotas.take_uses()
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                for first in range(0, max(1, len(uses)), _AT_ONCE):
                    some = uses[first : first + _AT_ONCE]
                    self._quotas.shared(*await self._exchange(some))
        except (RedisError, OSError, TimeoutError, TypeError, ValueError) as error:
            log.debug("quotas are not shared now: %s", type(error).__name__)
            self._reachable.set(0)
            return False
        self._reachable.set(1)
        return True

    async def close(self) -> None:
        """Closes the connection."""
        await self._redis.aclose()

    async def _exchange(self, uses: Sequence[Use]) -> tuple[Mapping[str, float], int]:
        """The common levels by tenant, and how many routers there are. Raises ValueError for what is no answer."""
        numbers = [f"{number:.6f}" for use in uses for number in (use.device_ms_per_s, use.burst_ms, use.used_ms)]
        keys = [_ROUTERS, *(_key(use.tenant) for use in uses)]
        told = cast(Sequence[Any], await self._script(keys=keys, args=[self._name, _ALIVE_S, *numbers]))
        if len(told) != len(keys):
            raise ValueError("an answer of another length")
        levels = {use.tenant: _level_ms(level, use.burst_ms) for use, level in zip(uses, told[1:], strict=True)}
        return levels, min(max(1, int(told[0])), _MOST_ROUTERS)


def _key(tenant: str) -> str:
    """Of bounded length, whatever the tenant is called."""
    return f"headway:quota:{hashlib.sha256(tenant.encode()).hexdigest()[:32]}"


def _level_ms(told: bytes, burst_ms: float) -> float:
    level_ms = float(told)
    if not math.isfinite(level_ms):
        raise ValueError("a level that is no number")
    return min(level_ms, burst_ms)
