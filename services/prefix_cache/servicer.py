"""`headway.v1.PrefixCache`: checks requests, takes the budget, asks the store."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from headway.deadline import Budget, Clock, budget_of
from headway.errors import BadInput
from headway.prefix import HASH_BYTES, MAX_PAYLOAD_BYTES, PayloadError, inspect
from headway.v1 import prefix_cache_pb2, prefix_cache_pb2_grpc
from services.prefix_cache.blocks import BlockStore
from services.prefix_cache.config import PrefixCacheConfig
from services.prefix_cache.directory import Directory
from services.prefix_cache.entry import KEY_BYTES
from services.prefix_cache.store import ResultStore

_MOST_HASHES = 64


class PrefixCacheServicer(prefix_cache_pb2_grpc.PrefixCacheServicer):
    """Results and blocks over Redis, and the directory of prefixes."""

    def __init__(
        self, config: PrefixCacheConfig, store: ResultStore, blocks: BlockStore, directory: Directory, clock: Clock
    ) -> None:
        self._config, self._store, self._clock = config, store, clock
        self._blocks, self._directory = blocks, directory

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
        budget = self._budget(context)
        if not 1 <= len(request.hashes) <= _MOST_HASHES:
            raise BadInput("hashes", f"must be 1 to {_MOST_HASHES}, not {len(request.hashes)}")
        for block in request.hashes:
            _check_hash("hashes", block)
        if request.present_only:
            present = await self._blocks.present(request.hashes, timeout_s=self._timeout_s(budget))
            return prefix_cache_pb2.FetchResponse(present=present)
        blocks = await self._blocks.fetch(request.hashes, timeout_s=self._timeout_s(budget))
        return prefix_cache_pb2.FetchResponse(blocks=blocks)

    async def Store(self, request: prefix_cache_pb2.StoreRequest, context: Any) -> prefix_cache_pb2.StoreResponse:
        budget = self._budget(context)
        _check_blocks(request.blocks)
        ttl_s = self._block_ttl_s(request)
        stored = await self._blocks.store(request.blocks, ttl_s=ttl_s, timeout_s=self._timeout_s(budget))
        return prefix_cache_pb2.StoreResponse(stored=stored)

    async def Publish(self, request: prefix_cache_pb2.PublishRequest, context: Any) -> prefix_cache_pb2.PublishResponse:
        self._budget(context)
        return prefix_cache_pb2.PublishResponse(need_snapshot=self._directory.publish(request))

    async def Watch(
        self, request: prefix_cache_pb2.WatchPrefixesRequest, context: Any
    ) -> AsyncIterator[prefix_cache_pb2.WatchPrefixesResponse]:
        watcher = self._directory.watch()
        try:
            while True:
                yield prefix_cache_pb2.WatchPrefixesResponse(report=await watcher.next())
        finally:
            self._directory.leave(watcher)

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

    def _block_ttl_s(self, request: prefix_cache_pb2.StoreRequest) -> float:
        ttl_s, limit_s = request.ttl.seconds + request.ttl.nanos / 1e9, self._config.max_block_ttl_s
        if not 0 < ttl_s <= limit_s:
            raise BadInput("ttl", f"must be more than 0 and at most {limit_s:g} s, not {ttl_s:g} s")
        return ttl_s

    def _ttl_s(self, request: prefix_cache_pb2.PutResultRequest) -> float:
        if not request.HasField("ttl"):
            return self._config.result_ttl_s
        ttl_s, limit_s = request.ttl.seconds + request.ttl.nanos / 1e9, self._config.max_result_ttl_s
        if not 0 < ttl_s <= limit_s:
            raise BadInput("ttl", f"must be more than 0 and at most {limit_s:g} s, not {ttl_s:g} s")
        return ttl_s


def _check_blocks(blocks: Sequence[prefix_cache_pb2.Block]) -> None:
    """Every block is what its header says, and all together fit a message. Raises `BadInput`."""
    if not 1 <= len(blocks) <= _MOST_HASHES:
        raise BadInput("blocks", f"must be 1 to {_MOST_HASHES}, not {len(blocks)}")
    size = sum(len(block.payload) for block in blocks)
    if size > MAX_PAYLOAD_BYTES:
        raise BadInput("blocks", f"must have at most {MAX_PAYLOAD_BYTES} bytes together, not {size}")
    for block in blocks:
        _check_hash("blocks.hash", block.hash)
        try:
            inspect(block.payload, block=block.hash)
        except PayloadError as error:
            raise BadInput("blocks.payload", str(error)) from error


def _check_hash(field: str, block: bytes) -> None:
    if len(block) != HASH_BYTES:
        raise BadInput(field, f"must have {HASH_BYTES} bytes each, not {len(block)}")


def _check_key(key: bytes) -> None:
    if len(key) != KEY_BYTES:
        raise BadInput("key", f"must have {KEY_BYTES} bytes, not {len(key)}")
