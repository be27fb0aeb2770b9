"""Blocks on their way to another worker or the prefix cache and back, in the format of `headway.prefix`."""

import numpy as np

from headway.prefix import BLOCK_TOKENS, ElementType, PayloadError, PayloadHeader, pack_header, unpack
from services.text_worker.kv.pages import Pages


def export_block(pages: Pages, block: int, *, block_hash: bytes, fingerprint: bytes) -> bytes:
    """Header, checksum and content of a full block. Raises PayloadError for one over the cache's size limit."""
    content = np.ascontiguousarray(pages.read(block)).data.cast("B")
    return pack_header(_header(pages, block_hash, fingerprint), content) + bytes(content)


def import_block(pages: Pages, block: int, stored: bytes, *, block_hash: bytes, fingerprint: bytes) -> None:
    """Writes what was exported as `block_hash` into block `block`, which the caller holds alone.

    Raises PayloadError, and writes nothing, for what is damaged, of another block, model, shape or element, or not
    finite.
    """
    header, payload = unpack(stored, block=block_hash, fingerprint=fingerprint)
    expected = _header(pages, block_hash, fingerprint)
    if header != expected:
        raise PayloadError(f"shape or element of the block differ: {header} is not {expected}")
    shape = (2, header.layers, header.kv_heads, header.tokens, header.head_dim)
    content = np.frombuffer(payload, np.float32).reshape(shape)
    if not np.isfinite(content).all():
        raise PayloadError("the block holds numbers that are not finite")
    pages.write(block, content)


def _header(pages: Pages, block_hash: bytes, fingerprint: bytes) -> PayloadHeader:
    _, kv_heads, head_dim, _ = pages.keys[0].shape
    return PayloadHeader(
        block=block_hash,
        fingerprint=fingerprint,
        element=ElementType.FLOAT32,
        layers=len(pages.keys),
        kv_heads=kv_heads,
        tokens=BLOCK_TOKENS,
        head_dim=head_dim,
    )
