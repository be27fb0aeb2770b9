"""Gaussians in SPZ: versions 1 to 3 (gzip) and 4 (zstd), decoded by gsply after the container was checked.

Coordinates stay as the file has them (SPZ's own frame is right, up, back); cameras are given in the same
frame.
"""

import struct
import zlib
from pathlib import Path

import gsply
import numpy as np

from headway.errors import BadInput
from services.splat_worker.readers.activations import activate
from services.splat_worker.scene import Gaussians, SceneLimits

MAGIC = 0x5053474E  # "NGSP", little endian
_GZIP = b"\x1f\x8b"
_HEADER = struct.Struct("<IIIBBB")
_HEADER_BYTES = {1: 16, 2: 16, 3: 16, 4: 32}
_MAX_EXTENSION_BYTES = 1 << 20
_INFLATE_CHUNK = 1 << 20


def read_spz(path: Path, limits: SceneLimits) -> Gaussians:
    """Read any version; raises BadInput naming the field and byte offset."""
    data = path.read_bytes()
    if data.startswith(_GZIP):
        _check_gzip(data, limits)
    else:
        _check_v4(data, limits)
    # gsply's compiled reader brings its own zstd; where a platform's wheel lacks it, the Python one serves.
    gsply.use_backend("auto")
    try:
        decoded = gsply.read_spz(path)
    except (RuntimeError, ValueError, MemoryError, EOFError, zlib.error, OSError) as error:
        raise BadInput("file", f"damaged SPZ: {error}".replace(str(path), path.name)) from None
    higher = decoded.shN if decoded.shN is not None else np.empty((len(decoded.means), 0, 3), np.float32)
    sh = np.concatenate([decoded.sh0[:, None, :], higher], axis=1)
    return activate(decoded.means, decoded.quats, decoded.scales, decoded.opacities.reshape(-1), sh)


def _check_header(head: bytes, versions: tuple[int, ...], limits: SceneLimits) -> tuple[int, int]:
    """Version and the bytes of the six sections; raises BadInput."""
    if len(head) < _HEADER.size:
        raise BadInput("header", f"{len(head)} bytes; must be at least {_HEADER.size}")
    magic, version, count, degree, fraction_bits, _flags = _HEADER.unpack_from(head)
    if magic != MAGIC:
        raise BadInput("header.magic", f"0x{magic:08x} at offset 0; must be 0x{MAGIC:08x}")
    if version not in versions:
        raise BadInput("header.version", f"{version} at offset 4; must be one of {versions}")
    if count > limits.max_gaussians:
        raise BadInput("header.num_points", f"{count} at offset 8; the limit is {limits.max_gaussians}")
    if degree > 3:
        raise BadInput("header.sh_degree", f"{degree} at offset 12; must be 0 to 3")
    if not 1 <= fraction_bits <= 24:
        raise BadInput("header.fractional_bits", f"{fraction_bits} at offset 13; must be 1 to 24")
    rotation_bytes = 3 if version < 3 else 4
    return version, count * (16 + rotation_bytes + 3 * ((degree + 1) ** 2 - 1))


def _check_gzip(data: bytes, limits: SceneLimits) -> None:
    """Inflate piece by piece, keeping nothing, to prove that the payload has the size that its header
    claims."""
    inflater = zlib.decompressobj(wbits=31)
    head, total, feed, most = b"", 0, data, _HEADER_BYTES[3]
    while feed and not inflater.eof:
        try:
            piece = inflater.decompress(feed, _INFLATE_CHUNK)
        except zlib.error as error:
            raise BadInput("file", f"damaged gzip stream: {error}") from None
        feed, total = inflater.unconsumed_tail, total + len(piece)
        if len(head) < _HEADER.size:
            head += piece[: _HEADER.size]
            if len(head) >= _HEADER.size:
                version, section_bytes = _check_header(head, (1, 2, 3), limits)
                most = _HEADER_BYTES[version] + section_bytes + _MAX_EXTENSION_BYTES
        if total > most:
            raise BadInput("payload", f"inflates to more than the {most} bytes that its header allows")
    total += len(inflater.flush())
    if inflater.unused_data:
        raise BadInput("file", f"{len(inflater.unused_data)} bytes after the gzip stream")
    version, section_bytes = _check_header(head, (1, 2, 3), limits)
    if total < _HEADER_BYTES[version] + section_bytes:
        raise BadInput("payload", f"{total} bytes; the header claims {_HEADER_BYTES[version] + section_bytes}")


def _check_v4(data: bytes, limits: SceneLimits) -> None:
    """Prove that the table of contents and the streams lie inside the file and promise the header's sizes."""
    _, section_bytes = _check_header(data, (4,), limits)
    if len(data) < _HEADER_BYTES[4]:
        raise BadInput("header", f"{len(data)} bytes; must be {_HEADER_BYTES[4]}")
    streams, toc = data[15], int.from_bytes(data[16:20], "little")
    start = toc + 16 * streams
    if toc < _HEADER_BYTES[4] or start > len(data):
        raise BadInput("header.toc_byte_offset", f"{toc} at offset 16: the table leaves the file of {len(data)} bytes")
    packed = unpacked = 0
    for stream in range(streams):
        sizes = struct.unpack_from("<QQ", data, toc + 16 * stream)
        packed, unpacked = packed + sizes[0], unpacked + sizes[1]
    if start + packed > len(data):
        raise BadInput("toc", f"streams end at {start + packed}, but the file has {len(data)} bytes")
    if unpacked != section_bytes:
        raise BadInput("toc", f"streams hold {unpacked} bytes; the header claims {section_bytes}")
