"""Blocks on their way to another worker or the prefix cache and back, in the format of `headway.prefix`."""

from dataclasses import dataclass

import numpy as np

from headway.prefix import BLOCK_TOKENS, HEADER_BYTES, ElementType, PayloadError, PayloadHeader, pack_header, unpack
from services.text_worker.kv.pages import Numbers, Pages, dtype_of
from services.text_worker.kv.store import KvStore


@dataclass(frozen=True, slots=True)
class Layout:
    """What every block of one model's cache looks like on its way."""

    fingerprint: bytes
    layers: int
    kv_heads: int
    head_dim: int
    element: ElementType = ElementType.FLOAT32

    @classmethod
    def of(cls, pages: Pages, fingerprint: bytes) -> "Layout":
        """That of the blocks in `pages`."""
        return cls(fingerprint, len(pages.keys), pages.kv_heads, pages.head_dim, pages.element)

    def header(self, block_hash: bytes) -> PayloadHeader:
        """Of the block with this hash."""
        return PayloadHeader(
            block=block_hash,
            fingerprint=self.fingerprint,
            element=self.element,
            layers=self.layers,
            kv_heads=self.kv_heads,
            tokens=BLOCK_TOKENS,
            head_dim=self.head_dim,
        )

    @property
    def payload_bytes(self) -> int:
        """Of the keys and values of one block."""
        return self.header(b"").payload_bytes

    @property
    def stored_bytes(self) -> int:
        """Of one block with its header."""
        return HEADER_BYTES + self.payload_bytes

    def content(self, stored: bytes, block_hash: bytes) -> Numbers:
        """What was exported as `block_hash`: [2, layers, kv_heads, BLOCK_TOKENS, head_dim], a view.

        Raises PayloadError for what is damaged, of another block, model, shape or element, or not finite.
        """
        header, payload = unpack(stored, block=block_hash, fingerprint=self.fingerprint)
        expected = self.header(block_hash)
        if header != expected:
            raise PayloadError(f"shape or element of the block differ: {header} is not {expected}")
        content: Numbers = np.frombuffer(payload, dtype_of(self.element))
        if not _all_finite(content):
            raise PayloadError("the block holds numbers that are not finite")
        return content.reshape(2, self.layers, self.kv_heads, BLOCK_TOKENS, self.head_dim)


def _all_finite(content: Numbers) -> bool:
    """Of fp32, or of the bits of bf16: exponents of ones alone are infinite or no numbers."""
    if content.dtype == np.float32:
        return bool(np.isfinite(content).all())
    exponents = np.bitwise_and(content.view(np.uint16), 0x7F80)
    return bool((exponents != 0x7F80).all())


def export_block(pages: Pages, block: int, *, block_hash: bytes, fingerprint: bytes) -> bytes:
    """Header, checksum and content of a full block. Raises PayloadError for one over the cache's size limit."""
    content = np.ascontiguousarray(pages.read(block)).data.cast("B")
    return b"".join((pack_header(Layout.of(pages, fingerprint).header(block_hash), content), content))


def export_named(store: KvStore, pages: Pages, block_hash: bytes, *, fingerprint: bytes) -> bytes | None:
    """As `export_block`, of the block with this name, from any thread and without holding it; None when it went.

    A block loses its name before it is written again, and the pool tells: so what was copied meanwhile is thrown away.
    """
    before = store.pool.last_event
    found = store.pool.match([block_hash])
    if not found:
        return None
    stored = export_block(pages, found[0], block_hash=block_hash, fingerprint=fingerprint)
    since = store.pool.events_after(before)
    went = since is None or any(not event.stored and event.block_hash == block_hash for event in since)
    return None if went else stored


def import_block(pages: Pages, block: int, stored: bytes, *, block_hash: bytes, fingerprint: bytes) -> None:
    """Writes what was exported as `block_hash` into block `block`, which the caller holds alone.

    Raises PayloadError, and writes nothing: see `Layout.content`.
    """
    pages.write(block, Layout.of(pages, fingerprint).content(stored, block_hash))
