"""How a result lies in the store: a versioned header, a checksum, and the result's own bytes."""

import struct
import zlib

from google.protobuf.message import DecodeError

from headway.v1 import prefix_cache_pb2

KEY_BYTES = 32

# magic, version, normalised quality, payload bytes, key; then the checksum
_FIELDS = struct.Struct("<4sHdI32s")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size
_MAGIC, _VERSION = b"HWRS", 1


class DamagedEntry(ValueError):
    """What is stored is damaged, of another version, or not of this key."""


def pack(key: bytes, result: prefix_cache_pb2.StoredResult) -> bytes:
    """The bytes to store under `key` (32 bytes)."""
    payload = result.SerializeToString()
    fields = _FIELDS.pack(_MAGIC, _VERSION, result.quality, len(payload), key)
    return fields + _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(fields))) + payload


def unpack(stored: bytes, key: bytes, stated_quality: bytes | None) -> prefix_cache_pb2.StoredResult:
    """The result that was stored under `key`. Raises `DamagedEntry`.

    `stated_quality` is the number that the store compares by, as text: it must be the result's own. The checksum
    (CRC-32) finds damage. It is no signature: who writes to the store is trusted.
    """
    if len(stored) < HEADER_BYTES:
        raise DamagedEntry(f"{len(stored)} bytes; at least {HEADER_BYTES}")
    magic, version, quality, size, owner = _FIELDS.unpack_from(stored)
    if (magic, version) != (_MAGIC, _VERSION):
        raise DamagedEntry(f"not a result of version {_VERSION}")
    payload = memoryview(stored)[HEADER_BYTES:]
    if owner != key or size != payload.nbytes:
        raise DamagedEntry("it is another key's, or cut off")
    (checksum,) = _CHECKSUM.unpack_from(stored, _FIELDS.size)
    if zlib.crc32(payload, zlib.crc32(stored[: _FIELDS.size])) != checksum:
        raise DamagedEntry("the checksum does not match")
    if stated_quality != quality_text(quality):
        raise DamagedEntry("the quality beside it is not its own")
    return _parsed(payload)


def quality_text(quality: float) -> bytes:
    """The quality as the store keeps it beside the entry: the shortest text that reads back as the same number."""
    return repr(quality).encode()


def _parsed(payload: memoryview) -> prefix_cache_pb2.StoredResult:
    try:
        return prefix_cache_pb2.StoredResult.FromString(bytes(payload))
    except DecodeError as error:
        raise DamagedEntry("its bytes are no result") from error
