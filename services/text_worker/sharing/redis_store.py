"""The fast path: blocks straight from Redis, with the keys and bytes of the prefix cache's service."""

from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar, cast

from redis.exceptions import RedisError

from headway.prefix import block_key
from headway.redis_client import redis_client
from services.text_worker.sharing.stores import StoreError

T = TypeVar("T")

_CONNECTIONS = 8


class RedisStore:
    """See `BlockStore`. Reconnects by itself."""

    def __init__(self, url: str, stored_bytes: int) -> None:
        """A value that does not have `stored_bytes`, a packed block's size, is none of ours and is never read."""
        self._redis, self._stored_bytes = redis_client(url, connections=_CONNECTIONS), stored_bytes

    async def present(self, hashes: Sequence[bytes]) -> list[bool]:
        pipeline = self._redis.pipeline(transaction=False)
        for block in hashes:
            pipeline.strlen(block_key(block))
        sizes = await _answered(cast(Awaitable[list[Any]], pipeline.execute(raise_on_error=False)))
        return [size == self._stored_bytes for size in sizes]  # what is no string is an error in its place

    async def fetch(self, hashes: Sequence[bytes]) -> list[bytes]:
        asked = self._redis.mget([block_key(block) for block in hashes])
        blocks: list[bytes] = []
        for stored in await _answered(cast(Awaitable[list[bytes | None]], asked)):
            if stored is None:
                break
            blocks.append(stored)
        return blocks

    async def store(self, blocks: Sequence[tuple[bytes, bytes]], ttl_s: float) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for block, stored in blocks:
            pipeline.set(block_key(block), stored, px=max(1, round(ttl_s * 1000)))
        await _answered(pipeline.execute())

    async def discard(self, block: bytes) -> None:
        await _answered(self._redis.delete(block_key(block)))

    async def close(self) -> None:
        await self._redis.aclose()


async def _answered(answer: Awaitable[T]) -> T:
    try:
        return await answer
    except (RedisError, OSError) as error:
        raise StoreError(f"Redis cannot be used: {type(error).__name__}") from error
