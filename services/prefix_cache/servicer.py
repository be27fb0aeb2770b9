"""`headway.v1.PrefixCache`: checks requests, takes the budget, asks the store."""

from collections.abc import AsyncIterator
from typing import Any

from headway.deadline import Budget, Clock, budget_of
from headway.errors import BadInput, Unimplemented
from headway.v1 import prefix_cache_pb2, prefix_cache_pb2_grpc
from services.prefix_cache.config import PrefixCacheConfig
from services.prefix_cache.entry import KEY_BYTES
from services.prefix_cache.store import ResultStore

_LATER = "prefix blocks are part of the contract, but not served by this version"


class PrefixCacheServicer(prefix_cache_pb2_grpc.PrefixCacheServicer):
    """Results over a `ResultStore`; blocks are not served yet."""

    def __init__(self, config: PrefixCacheConfig, store: ResultStore, clock: Clock) -> None:
        self._config, self._store, self._clock = config, store, clock

    async def GetResult(
        self, request: prefix_cache_pb2.GetResultRequest, context: Any
    ) -> prefix_cache_pb2.GetResultResponse:
        budget = self._budget(context)
        _check_key(request.key)
        result = await self._store.get(request.key, timeout_s=self._timeout_s(budget))
        return prefix_cache_pb2.GetResultResponse(result=result)

    async def PutResult(
        self, request: prefix_cache_pb2.PutResultRequest, context: Any
    ) -> prefix_cache_pb2.PutResultResponse:
        budget = self._budget(context)
        _check_key(request.key)
        self._check_result(request)
        ttl_s = self._ttl_s(request)
        timeout_s = self._timeout_s(budget)
        stored = await self._store.put(request.key, request.result, ttl_s=ttl_s, timeout_s=timeout_s)
        return prefix_cache_pb2.PutResultResponse(stored=stored)

    async def Fetch(self, request: prefix_cache_pb2.FetchRequest, context: Any) -> prefix_cache_pb2.FetchResponse:
        raise Unimplemented(f"Fetch: {_LATER}")

    async def Store(self, request: prefix_cache_pb2.StoreRequest, context: Any) -> prefix_cache_pb2.StoreResponse:
        raise Unimplemented(f"Store: {_LATER}")

    async def Publish(self, request: prefix_cache_pb2.PublishRequest, context: Any) -> prefix_cache_pb2.PublishResponse:
        raise Unimplemented(f"Publish: {_LATER}")

    def Watch(
        self, request: prefix_cache_pb2.WatchPrefixesRequest, context: Any
    ) -> AsyncIterator[prefix_cache_pb2.WatchPrefixesResponse]:
        raise Unimplemented(f"Watch: {_LATER}")

    def _budget(self, context: Any) -> Budget:
        return budget_of(
            context,
            max_deadline_s=self._config.max_deadline_s,
            reserve_s=self._config.return_reserve_ms / 1000,
            clock=self._clock,
        )

    def _timeout_s(self, budget: Budget) -> float:
        now_s = self._clock()
        budget.check(now_s)
        return min(self._config.redis_timeout_ms / 1000, budget.remaining_s(now_s))

    def _check_result(self, request: prefix_cache_pb2.PutResultRequest) -> None:
        if not request.result.messages:
            raise BadInput("result.messages", "must hold at least one message")
        size, limit = sum(map(len, request.result.messages)), self._config.max_result_kib << 10
        if size > limit:
            raise BadInput("result.messages", f"must hold at most {limit} bytes together, not {size}")
        if not 0 <= request.result.quality <= 1:  # also refuses NaN
            raise BadInput("result.quality", f"must be 0 to 1, not {request.result.quality}")

    def _ttl_s(self, request: prefix_cache_pb2.PutResultRequest) -> float:
        if not request.HasField("ttl"):
            return self._config.result_ttl_s
        ttl_s, limit_s = request.ttl.seconds + request.ttl.nanos / 1e9, self._config.max_result_ttl_s
        if not 0 < ttl_s <= limit_s:
            raise BadInput("ttl", f"must be more than 0 and at most {limit_s:g} s, not {ttl_s:g} s")
        return ttl_s


def _check_key(key: bytes) -> None:
    if len(key) != KEY_BYTES:
        raise BadInput("key", f"must have {KEY_BYTES} bytes, not {len(key)}")
