"""The size of a lossless WebP image, read from its header so that nothing is decoded before it is known.

Format: RFC 9649.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from headway.errors import BadInput

_CHUNK = struct.Struct("<4sL")
_MAX_CHUNKS = 8
_LOSSLESS = b"VP8L"
_HARMLESS = (b"VP8X", b"ICCP", b"EXIF", b"XMP ")  # what may stand beside the image; animations and lossy ones may not
_SIGNATURE = 0x2F


@dataclass(frozen=True)
class ImageSize:
    """Pixels of an image."""

    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height


def webp_size(member: str, data: bytes) -> ImageSize:
    """Size of the one lossless still image in `data`; raises BadInput naming the member and the byte offset."""
    field = f"member {member}"
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or int.from_bytes(data[4:8], "little") + 8 != len(data):
        raise BadInput(field, f"not a WebP image of {len(data)} bytes at offset 0")
    images = []
    for number, (kind, start, size) in enumerate(_chunks(field, data)):
        if number == _MAX_CHUNKS or kind not in (_LOSSLESS, *_HARMLESS):
            raise BadInput(field, f"chunk {kind!r} at offset {start}; must hold one lossless still image")
        if kind == _LOSSLESS:
            images.append((start, size))
    if len(images) != 1:
        raise BadInput(field, f"{len(images)} lossless images; must be 1")
    return _lossless_size(field, data, *images[0])


def _chunks(field: str, data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, offset of the payload and its bytes, each proved to lie inside the data."""
    at = 12
    while at < len(data):
        if at + _CHUNK.size > len(data):
            raise BadInput(field, f"chunk at offset {at} is cut off")
        kind, size = _CHUNK.unpack_from(data, at)
        start = at + _CHUNK.size
        if start + size > len(data):
            raise BadInput(field, f"chunk {kind!r} at offset {at} claims {size} bytes; {len(data) - start} are left")
        yield kind, start, size
        at = start + size + size % 2


def _lossless_size(field: str, data: bytes, start: int, size: int) -> ImageSize:
    if size < 5 or data[start] != _SIGNATURE:
        raise BadInput(field, f"no lossless image header at offset {start}")
    bits = int.from_bytes(data[start + 1 : start + 5], "little")  # 14 width - 1, 14 height - 1, 1 alpha, 3 version
    if bits >> 29:
        raise BadInput(field, f"lossless image version {bits >> 29} at offset {start}; must be 0")
    return ImageSize((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
