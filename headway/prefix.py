"""The identity of a prompt's beginning: what workers, router and prefix cache must agree on (DESIGN, decision 10).

Two chains name a prefix. Workers match token blocks; the router, which has no tokenizer, matches chunks of the
canonical prompt's bytes. Every link hashes the one before it, so an equal hash means an equal beginning. Both chains
begin with the tenant's salt and the model's fingerprint: tenants and models never share an entry.
"""

import hashlib
import hmac
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

BLOCK_TOKENS = 32
"""Prompt tokens in one prefix block."""
CHUNK_BYTES = 256
"""Bytes of the canonical prompt in one chunk."""
TOKEN_BYTES = 4
"""Bytes of a token in the canonical form of a prompt that came as token ids."""
HASH_BYTES = 32
MAX_PAYLOAD_BYTES = 2 << 20
"""Header and KV bytes of one block, as the prefix cache takes it."""
MIN_SECRET_BYTES = 16

_LENGTH = struct.Struct("<I")


def tenant_salt(secret: bytes, tenant: str) -> str:
    """HMAC-SHA256 of the tenant's name under the server's secret, in hex. Raises ValueError for a short secret."""
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(f"the server's secret has {len(secret)} bytes; at least {MIN_SECRET_BYTES}")
    return hmac.new(secret, tenant.encode(), hashlib.sha256).hexdigest()


def model_fingerprint(files: Iterable[Path], traits: Mapping[str, str]) -> bytes:
    """SHA-256 over the names and bytes of a model's files and over what else changes its numbers, such as precision.

    Blocks: reads every file. Independent of the order given; the folder's own name does not count.
    """
    digest = hashlib.sha256(b"headway model 1")
    for path in sorted(files, key=lambda path: path.name):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        _update(digest, path.name.encode(), content)
    for name, value in sorted(traits.items()):
        _update(digest, name.encode(), value.encode())
    return digest.digest()


def token_chain(
    tokens: Sequence[int],
    *,
    salt: str,
    fingerprint: bytes,
    block_tokens: int = BLOCK_TOKENS,
    after: bytes | None = None,
) -> tuple[bytes, ...]:
    """The hash of every full block of `tokens`, each over all tokens up to its end; 32 bytes each.

    `after` is the hash of the block that `tokens` follow; None where they are the beginning. What is left over after
    the last full block has no hash. Raises ValueError for a token outside 0 to 2**32 - 1.
    """
    pack = struct.Struct(f"<{block_tokens}I").pack
    ends = range(block_tokens, len(tokens) + 1, block_tokens)
    try:
        blocks = [pack(*tokens[end - block_tokens : end]) for end in ends]
    except struct.error as error:
        raise ValueError("a token is not a number of 0 to 2**32 - 1") from error
    return tuple(_links(after or _root(b"headway tokens 1", salt, fingerprint, block_tokens), blocks))


def chunk_links(canonical: bytes, *, salt: str, fingerprint: bytes) -> Iterator[bytes]:
    """The hash of each full chunk of a canonical prompt over all bytes up to its end; 32 bytes each.

    A link is hashed when it is asked for: who stops at the first that nobody knows pays for no more.
    """
    ends = range(CHUNK_BYTES, len(canonical) + 1, CHUNK_BYTES)
    chunks = (canonical[end - CHUNK_BYTES : end] for end in ends)
    return _links(_root(b"headway chunks 1", salt, fingerprint, CHUNK_BYTES), chunks)


def chunk_chain(canonical: bytes, *, salt: str, fingerprint: bytes) -> tuple[bytes, ...]:
    """All of `chunk_links`."""
    return tuple(chunk_links(canonical, salt=salt, fingerprint=fingerprint))


def canonical_text(prompt: str) -> bytes:
    """The canonical bytes of a plain prompt. One that goes on has this one's bytes as its beginning."""
    return b"T" + prompt.encode()


def canonical_messages(messages: Iterable[tuple[str, str]]) -> bytes:
    """The canonical bytes of a conversation of (role, content), in order.

    A conversation that goes on, be it in its last message, has this one's bytes less the final mark as its beginning.
    """
    return b"M" + b"".join(_escaped(role) + _UNIT + _escaped(content) + _RECORD for role, content in messages)


def canonical_tokens(ids: Sequence[int]) -> bytes:
    """The canonical bytes of a prompt that came as token ids, `TOKEN_BYTES` each behind a mark.

    Raises ValueError for a token outside 0 to 2**32 - 1.
    """
    try:
        return b"I" + struct.pack(f"<{len(ids)}I", *ids)
    except struct.error as error:
        raise ValueError("a token is not a number of 0 to 2**32 - 1") from error


_ESCAPE, _UNIT, _RECORD = b"\x1b", b"\x1f", b"\x1e"


def _escaped(text: str) -> bytes:
    raw = text.encode().replace(_ESCAPE, _ESCAPE + b"e")
    return raw.replace(_UNIT, _ESCAPE + b"u").replace(_RECORD, _ESCAPE + b"r")


def _root(what: bytes, salt: str, fingerprint: bytes, size: int) -> bytes:
    digest = hashlib.sha256(what)
    _update(digest, salt.encode(), fingerprint, _LENGTH.pack(size))
    return digest.digest()


def _links(root: bytes, parts: Iterable[bytes]) -> Iterator[bytes]:
    for part in parts:
        root = hashlib.sha256(root + part).digest()
        yield root


def _update(digest: "hashlib._Hash", *parts: bytes) -> None:
    """Adds the parts with their lengths, so that no two lists of parts give the same bytes."""
    for part in parts:
        digest.update(_LENGTH.pack(len(part)) + part)


class ElementType(IntEnum):
    """The type of the numbers in a payload."""

    FLOAT32 = 1
    FLOAT16 = 2
    BFLOAT16 = 3

    @property
    def bytes_each(self) -> int:
        """The size of one number."""
        return 4 if self is ElementType.FLOAT32 else 2


def block_key(block: bytes) -> bytes:
    """Where a block lies in Redis: the same for the prefix cache's service and for workers that reach Redis."""
    return b"headway:block:1:" + block


class PayloadError(ValueError):
    """The payload is damaged, of another version, or not of the block and model that were asked for."""


@dataclass(frozen=True, slots=True)
class PayloadHeader:
    """What a block's bytes are: keys, then values, as [2, layers, kv_heads, tokens, head_dim] of `element`."""

    block: bytes
    """The chain hash of the block; 32 bytes."""
    fingerprint: bytes
    """Of the model; 32 bytes."""
    element: ElementType
    layers: int
    kv_heads: int
    tokens: int
    head_dim: int

    @property
    def payload_bytes(self) -> int:
        """How many bytes follow the header."""
        return 2 * self.layers * self.kv_heads * self.tokens * self.head_dim * self.element.bytes_each


# magic, version, element, layers, kv_heads, tokens, head_dim, payload bytes, block, fingerprint; then the checksum
_FIELDS = struct.Struct("<4sHHHHHHI32s32s")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size
_MAGIC, _VERSION = b"HWKV", 1


def pack_header(header: PayloadHeader, payload: bytes | memoryview) -> bytes:
    """The bytes that go before `payload`. Raises `PayloadError` when they do not fit each other or the limits."""
    size = memoryview(payload).nbytes
    if size != header.payload_bytes:
        raise PayloadError(f"payload has {size} bytes; its header says {header.payload_bytes}")
    if size + HEADER_BYTES > MAX_PAYLOAD_BYTES:
        raise PayloadError(f"block of {size + HEADER_BYTES} bytes; at most {MAX_PAYLOAD_BYTES}")
    if not (len(header.block) == len(header.fingerprint) == HASH_BYTES):
        raise PayloadError(f"block and fingerprint have {HASH_BYTES} bytes each")
    shape = (header.layers, header.kv_heads, header.tokens, header.head_dim)
    try:
        fields = _FIELDS.pack(_MAGIC, _VERSION, header.element, *shape, size, header.block, header.fingerprint)
    except struct.error as error:
        raise PayloadError(f"shape {shape}: each must be 0 to 65535") from error
    return fields + _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(fields)))


def unpack(stored: bytes, *, block: bytes, fingerprint: bytes) -> tuple[PayloadHeader, memoryview]:
    """The header and the KV bytes (a view, not a copy) of what was stored for `block`. Raises `PayloadError`.

    The checksum (CRC-32 over header and payload) finds damage. It is no signature: who writes to the store is trusted.
    """
    if not HEADER_BYTES <= len(stored) <= MAX_PAYLOAD_BYTES:
        raise PayloadError(f"{len(stored)} bytes; {HEADER_BYTES} to {MAX_PAYLOAD_BYTES}")
    payload = memoryview(stored)[HEADER_BYTES:]
    header = _header(stored, payload.nbytes)
    (checksum,) = _CHECKSUM.unpack_from(stored, _FIELDS.size)
    if zlib.crc32(payload, zlib.crc32(stored[: _FIELDS.size])) != checksum:
        raise PayloadError("the checksum does not match")
    if (header.block, header.fingerprint) != (block, fingerprint):
        raise PayloadError("it is another block's or another model's")
    return header, payload


def inspect(stored: bytes, *, block: bytes) -> PayloadHeader:
    """The header of what is to be stored for `block`, whatever the model. Raises `PayloadError`."""
    if len(stored) < HEADER_BYTES:
        raise PayloadError(f"{len(stored)} bytes; at least {HEADER_BYTES}")
    return unpack(stored, block=block, fingerprint=stored[_FIELDS.size - HASH_BYTES : _FIELDS.size])[0]


def _header(stored: bytes, size: int) -> PayloadHeader:
    magic, version, element, *shape, stated, block, fingerprint = _FIELDS.unpack_from(stored)
    if (magic, version) != (_MAGIC, _VERSION):
        raise PayloadError(f"not a payload of version {_VERSION}")
    if element not in set(ElementType):
        raise PayloadError(f"element type {element} is unknown")
    header = PayloadHeader(block, fingerprint, ElementType(element), *shape)
    if not stated == size == header.payload_bytes:
        raise PayloadError(f"payload has {size} bytes; its header says {stated} and shape {tuple(shape)}")
    return header
