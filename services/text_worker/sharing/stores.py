"""Where shared blocks lie, as the worker sees it: `RedisStore` is the fast path, `MeshStore` the portable one."""

from collections.abc import Sequence
from typing import Protocol

from headway.prefix import HEADER_BYTES, MAX_PAYLOAD_BYTES


class StoreError(RuntimeError):
    """The store cannot be used now."""


class BlockStore(Protocol):
    """Blocks by their chain hash, as `headway.prefix` packs them. No method waits for longer than its caller lets it.

    What is found there is the reader's to check. Every method raises `StoreError`.
    """

    async def present(self, hashes: Sequence[bytes]) -> list[bool]:
        """Which blocks are there, in the order asked for; at most 64."""

    async def fetch(self, hashes: Sequence[bytes]) -> list[bytes]:
        """The blocks in order, up to the first that is missing; as many as are asked for fit one message."""

    async def store(self, blocks: Sequence[tuple[bytes, bytes]], ttl_s: float) -> None:
        """Keeps blocks, each with its hash; together they fit one message."""

    async def discard(self, block: bytes) -> None:
        """Removes one that is damaged, where this path can."""

    async def close(self) -> None:
        """Lets go of connections."""


def blocks_a_message(payload_bytes: int) -> int | None:
    """How many blocks of so many KV bytes one message takes; None: not one."""
    return MAX_PAYLOAD_BYTES // (payload_bytes + HEADER_BYTES) or None
