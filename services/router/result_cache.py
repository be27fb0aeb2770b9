"""Answers that were given before (DESIGN, decision 11). The cache slow or gone means slower, never wrong."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import grpc

from headway.deadline import Budget, Clock, floor_to_wire_s
from headway.prefix import tenant_salt
from headway.telemetry import CacheResult, Metrics, Span
from headway.tracing import Tracing, inject
from headway.upstream import Connection, UpstreamCredentials
from headway.v1 import prefix_cache_pb2, prefix_cache_pb2_grpc
from services.router.breaker import Breaker
from services.router.methods import Method
from services.router.placement import Placement
from services.router.pool import kind_name
from services.router.replay import Answer, read_answer, result_key

log = logging.getLogger(__name__)

_LOOKUP_SHARE = 0.1
_PUT_S = 0.5
_MOST_PUTS = 16


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """How far the cache goes."""

    ttl_s: float
    max_bytes: int
    lookup_s: float


class Recording:
    """Collects an answer while it is streamed; gives up when it grows too large."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self._messages: list[bytes] = []

    def add(self, message: bytes) -> None:
        self._left -= len(message)
        if self._left >= 0:
            self._messages.append(message)
        else:
            self._messages.clear()

    @property
    def messages(self) -> list[bytes] | None:
        """The whole answer; None when it was too large."""
        return self._messages if self._left >= 0 else None


class ResultCache:
    """Looks answers up in the prefix cache and keeps new ones there, in the background."""

    def __init__(
        self,
        connection: Connection,
        credentials: UpstreamCredentials,
        secret: bytes,
        limits: CacheLimits,
        tasks: asyncio.TaskGroup,
        *,
        metrics: Metrics,
        tracing: Tracing,
        clock: Clock,
    ) -> None:
        """`tasks` runs what is kept in the background; `secret` keeps tenants' entries apart."""
        self._connection, self._credentials = connection, credentials
        self._secret, self._limits, self._tasks = secret, limits, tasks
        self._metrics, self._tracing, self._clock = metrics, tracing, clock
        self._breaker = Breaker(clock)
        self._puts = 0
        connection.channel.get_state(try_to_connect=True)

    @property
    def reachable(self) -> bool:
        """Whether the prefix cache's process can be reached now."""
        return self._connection.channel.get_state(try_to_connect=True) == grpc.ChannelConnectivity.READY

    @property
    def _stub(self) -> prefix_cache_pb2_grpc.PrefixCacheStub:
        return prefix_cache_pb2_grpc.PrefixCacheStub(self._connection.channel)

    def recording(self) -> Recording:
        """For an answer that may be kept."""
        return Recording(self._limits.max_bytes)

    async def find(
        self, method: Method, request: Any, tenant: str, placement: Placement, budget: Budget
    ) -> Answer | None:
        """A kept answer that is at least as good as what `placement` would give, and that the caller accepts."""
        timeout_s = floor_to_wire_s(min(self._limits.lookup_s, _LOOKUP_SHARE * budget.remaining_s(self._clock())))
        result, answer = CacheResult.ERROR, None
        if timeout_s > 0 and self._breaker.allows():
            key = result_key(method, request, placement.asset.hash, tenant_salt(self._secret, tenant))
            result, answer = await self._look_up(method, key, placement, timeout_s)
        self._metrics.result_cache.labels(kind_name(method.kind), result).inc()
        return answer

    def keep(self, method: Method, request: Any, tenant: str, messages: list[bytes]) -> None:
        """Keeps an answer, in the background; drops it when the cache is behind or known to be gone."""
        answer = read_answer(method, messages)
        if answer is None or self._puts >= _MOST_PUTS or not self._breaker.allows():
            return
        put = prefix_cache_pb2.PutResultRequest(
            key=result_key(method, request, answer.served.asset_hash, tenant_salt(self._secret, tenant)),
            result=prefix_cache_pb2.StoredResult(messages=messages, quality=answer.served.quality),
        )
        put.ttl.FromMilliseconds(round(self._limits.ttl_s * 1000))
        self._puts += 1
        self._tasks.create_task(self._put(put))

    async def _look_up(
        self, method: Method, key: bytes, placement: Placement, timeout_s: float
    ) -> tuple[CacheResult, Answer | None]:
        with self._tracing.span(Span.CACHE_GET):
            try:
                response = await self._stub.GetResult(
                    prefix_cache_pb2.GetResultRequest(key=key),
                    timeout=timeout_s,
                    metadata=inject(self._credentials.metadata()),
                )
            except grpc.aio.AioRpcError as error:
                log.debug("the result cache failed: %s", error.details())
                self._breaker.failed()
                return CacheResult.ERROR, None
            self._breaker.worked()
            result, answer = _judge(method, response, placement)
            self._tracing.note(cached=result is CacheResult.HIT)
        return result, answer

    async def _put(self, put: prefix_cache_pb2.PutResultRequest) -> None:
        try:
            with self._tracing.span(Span.CACHE_PUT):
                await self._stub.PutResult(put, timeout=_PUT_S, metadata=inject(self._credentials.metadata()))
            self._breaker.worked()
        except grpc.aio.AioRpcError as error:
            log.debug("a result was not kept: %s", error.details())
            self._breaker.failed()
        finally:
            self._puts -= 1


def _judge(
    method: Method, response: prefix_cache_pb2.GetResultResponse, placement: Placement
) -> tuple[CacheResult, Answer | None]:
    """A kept answer is used when it is of the same asset, of an allowed rung, and as good as what is planned now."""
    if not response.HasField("result"):
        return CacheResult.MISS, None
    answer = read_answer(method, response.result.messages)
    if answer is None or answer.served.asset_hash != placement.asset.hash:
        return CacheResult.ERROR, None
    return (CacheResult.HIT, answer) if answer.serves(placement) else (CacheResult.WORSE, None)
