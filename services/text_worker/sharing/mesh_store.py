"""The portable path: blocks through the prefix cache's service, for workers that do not reach Redis."""

from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

import grpc

from headway.upstream import Connection, UpstreamCredentials
from headway.v1 import prefix_cache_pb2, prefix_cache_pb2_grpc
from services.text_worker.sharing.stores import StoreError

T = TypeVar("T")

_MOST_S = 2.0


class MeshStore:
    """See `BlockStore`. Damaged blocks lapse there by themselves."""

    def __init__(self, connection: Connection, credentials: UpstreamCredentials) -> None:
        """The connection stays its owner's."""
        self._connection, self._credentials = connection, credentials

    async def present(self, hashes: Sequence[bytes]) -> list[bool]:
        request = prefix_cache_pb2.FetchRequest(hashes=hashes, present_only=True)
        response = await _answered(self._stub.Fetch(request, **self._options))
        if len(response.present) != len(hashes):  # a prefix cache of before this field answers with blocks
            raise StoreError("the prefix cache does not say which blocks it has")
        return list(response.present)

    async def fetch(self, hashes: Sequence[bytes]) -> list[bytes]:
        request = prefix_cache_pb2.FetchRequest(hashes=hashes)
        response = await _answered(self._stub.Fetch(request, **self._options))
        return [block.payload for block in response.blocks]

    async def store(self, blocks: Sequence[tuple[bytes, bytes]], ttl_s: float) -> None:
        request = prefix_cache_pb2.StoreRequest(
            blocks=[prefix_cache_pb2.Block(hash=block, payload=stored) for block, stored in blocks]
        )
        request.ttl.FromMilliseconds(max(1, round(ttl_s * 1000)))
        await _answered(self._stub.Store(request, **self._options))

    async def discard(self, block: bytes) -> None: ...

    async def close(self) -> None: ...

    @property
    def _stub(self) -> Any:
        return prefix_cache_pb2_grpc.PrefixCacheStub(self._connection.channel)

    @property
    def _options(self) -> dict[str, Any]:
        return {"timeout": _MOST_S, "metadata": self._credentials.metadata()}


async def _answered(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise StoreError(f"the prefix cache cannot be used: {error.details()}") from error
