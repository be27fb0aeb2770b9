"""The connection to Redis. Redis gone means a quick `StoreUnavailable`, never a wait beyond the call's budget."""

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any, Protocol, TypeVar, cast

from redis.exceptions import RedisError

from headway.errors import StoreUnavailable
from headway.redis_client import redis_client

log = logging.getLogger(__name__)

T = TypeVar("T")

_RETRY_AFTER_S = 1.0


class ReachableGauge(Protocol):
    """Is told whether the store answers: 1 or 0."""

    def set(self, value: float) -> None: ...


class RedisLink:
    """One pool of connections for all that is stored. Reconnects by itself."""

    def __init__(self, url: str, *, connections: int, reachable: ReachableGauge) -> None:
        self.redis = redis_client(url, connections=connections)
        self._reachable = reachable

    async def watch(self, interval_s: float, timeout_s: float) -> None:
        """Asks every `interval_s` whether the store answers, for the metric, until cancelled."""
        while True:
            try:
                await self.bounded(cast(Awaitable[Any], self.redis.ping()), timeout_s)
            except StoreUnavailable as error:
                log.debug("%s", error.message)
            await asyncio.sleep(interval_s)

    async def close(self) -> None:
        """Closes the connections."""
        await self.redis.aclose()

    async def bounded(self, answer: Awaitable[T], timeout_s: float) -> T:
        """Redis's answer, within `timeout_s`. Raises `StoreUnavailable`."""
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
