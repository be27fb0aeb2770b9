"""Prefix blocks in Redis: a block's header and KV bytes under its chain hash.

Workers that reach Redis themselves use the same keys and bytes; what they find there is theirs to check
(`headway.prefix.unpack`).
"""

from collections.abc import Awaitable, Sequence
from typing import cast

from headway.prefix import MAX_PAYLOAD_BYTES, block_key
from headway.v1 import prefix_cache_pb2
from services.prefix_cache.link import RedisLink


class BlockStore:
    """Blocks by hash; every method takes the longest that it may wait."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    async def fetch(self, hashes: Sequence[bytes], *, timeout_s: float) -> list[prefix_cache_pb2.Block]:
        """The blocks in order, up to the first that is missing, as many as one message takes.

        Raises `StoreUnavailable`.
        """
        return await self._link.bounded(self._read(hashes), timeout_s)

    async def present(self, hashes: Sequence[bytes], *, timeout_s: float) -> list[bool]:
        """Whether something of a block's size lies under each hash. Raises `StoreUnavailable`."""
        sizes = await self._link.bounded(self._sizes(hashes), timeout_s)
        return [size is not None for size in sizes]

    async def store(self, blocks: Sequence[prefix_cache_pb2.Block], *, ttl_s: float, timeout_s: float) -> int:
        """Keeps the blocks; those that are there live longer and are not written again. Returns how many were new.

        Raises `StoreUnavailable`.
        """
        return await self._link.bounded(self._write(blocks, max(1, round(ttl_s * 1000))), timeout_s)

    async def _read(self, hashes: Sequence[bytes]) -> list[prefix_cache_pb2.Block]:
        """Sizes first: a message's worth is read, however many are asked for."""
        wanted, left = [], MAX_PAYLOAD_BYTES
        for block, size in zip(hashes, await self._sizes(hashes), strict=True):
            if size is None or size > left:
                break
            wanted.append(block)
            left -= size
        if not wanted:
            return []
        asked = self._link.redis.mget([block_key(block) for block in wanted])
        found = await cast(Awaitable[list[bytes | None]], asked)
        blocks = []
        for block, payload in zip(wanted, found, strict=True):
            if payload is None:
                break
            blocks.append(prefix_cache_pb2.Block(hash=block, payload=payload))
        return blocks

    async def _sizes(self, hashes: Sequence[bytes]) -> list[int | None]:
        """Bytes under each hash; None where there are none, or what could be no block."""
        pipeline = self._link.redis.pipeline(transaction=False)
        for block in hashes:
            pipeline.strlen(block_key(block))
        sizes = await pipeline.execute(raise_on_error=False)
        return [size if isinstance(size, int) and 0 < size <= MAX_PAYLOAD_BYTES else None for size in sizes]

    async def _write(self, blocks: Sequence[prefix_cache_pb2.Block], ttl_ms: int) -> int:
        pipeline = self._link.redis.pipeline(transaction=False)
        for block in blocks:
            pipeline.set(block_key(block.hash), block.payload, px=ttl_ms, nx=True)
            pipeline.pexpire(block_key(block.hash), ttl_ms, gt=True)
        answers = await pipeline.execute()
        return sum(1 for answer in answers[::2] if answer)
