"""The zip file of a SOG scene, opened and read within limits. Nothing in it is ever written to disk."""

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from headway.errors import BadInput

MAX_MEMBERS = 32
MAX_DIRECTORY_BYTES = 16 * 1024
MEMBER_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_END = struct.Struct("<4s4H2LH")  # signature, 2 disks, entries here, entries, directory bytes and offset, comment bytes
_LOCATOR_64_BYTES = 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile inflates these piece by piece, the others at once


def open_archive(file: BinaryIO) -> zipfile.ZipFile:
    """The archive, its directory checked; members are read with `read_member`. Raises BadInput naming the member."""
    _check_end(file)
    with _damage("zip directory"):
        archive = zipfile.ZipFile(file)
    names = archive.namelist()
    for name in names:
        if not re.fullmatch(MEMBER_NAME, name):
            raise BadInput("zip directory", f"member {name[:64]!r}; a name must match {MEMBER_NAME}")
        if names.count(name) > 1:
            raise BadInput("zip directory", f"member {name} is there twice")
    return archive


def read_member(archive: zipfile.ZipFile, name: str, most_bytes: int) -> bytes:
    """The bytes of one member. Raises BadInput when it is missing, too large, or not what the directory claims."""
    if name not in archive.NameToInfo:
        raise BadInput(f"member {name}", f"missing; the file has {sorted(archive.namelist())}")
    info = archive.getinfo(name)
    if info.file_size > most_bytes:
        raise BadInput(f"member {name}", f"{info.file_size} bytes; the limit is {most_bytes}")
    if info.compress_type not in _METHODS:
        raise BadInput(f"member {name}", f"compression method {info.compress_type}; must be stored (0) or deflated (8)")
    with _damage(f"member {name}"), archive.open(info) as stream:
        data = stream.read(most_bytes + 1)
    if len(data) != info.file_size:
        raise BadInput(f"member {name}", f"{len(data)} bytes; the directory claims {info.file_size}")
    return data


def _check_end(file: BinaryIO) -> None:
    """What zipfile believes before it loads a directory of any size: the record that ends the file."""
    size = file.seek(0, 2)
    start = size - _END.size
    if start < 0:
        raise BadInput("zip end record", f"the file has {size} bytes; the record alone has {_END.size}")
    file.seek(max(0, start - _LOCATOR_64_BYTES))
    tail = file.read()
    magic, _, _, _, entries, directory_bytes, _, comment_bytes = _END.unpack(tail[-_END.size :])
    if magic != b"PK\x05\x06" or comment_bytes:
        raise BadInput("zip end record", f"no record without a comment at offset {start}: not a zip file, or truncated")
    if tail.startswith(b"PK\x06\x07"):
        raise BadInput("zip end record", "ZIP64, which no SOG scene needs, is not supported")
    if entries > MAX_MEMBERS or directory_bytes > MAX_DIRECTORY_BYTES:
        raise BadInput(
            "zip end record",
            f"{entries} members in a directory of {directory_bytes} bytes at offset {start}; "
            f"the limits are {MAX_MEMBERS} and {MAX_DIRECTORY_BYTES}",
        )


@contextmanager
def _damage(field: str) -> Iterator[None]:
    """Everything that zipfile raises over bytes that are no good, as BadInput."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError, OSError) as error:
        raise BadInput(field, f"damaged zip file: {error}") from None
