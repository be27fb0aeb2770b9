"""A gRPC call as an HTTP proxy sees it: headers, a body in pieces, a status in trailers. Pure; nothing is believed.

Follows "gRPC over HTTP2" of gRPC's own documents: PROTOCOL-HTTP2.md.
"""

import base64
import binascii
import math
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import grpc

from headway.errors import BadInput, HeadwayError, Unimplemented, from_rpc_error
from headway.tracing import Metadata

_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_SECONDS = {"H": 3600, "M": 60, "S": 1}
_A_SECOND = {"m": 1000, "u": 1_000_000, "n": 1_000_000_000}
_MOST_MS = 99_999_999
"""A timeout has at most eight digits."""
_HEAD_BYTES = 5
_WINDOW_BITS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
_STATUSES = {str(status.value[0]): status for status in grpc.StatusCode}


def one(metadata: Metadata, name: str) -> str | None:
    """The first header of this name; None where there is none that is text."""
    return next((value for key, value in metadata if key == name and isinstance(value, str)), None)


@dataclass(frozen=True, slots=True)
class Timeout:
    """What a `grpc-timeout` header says, in the form in which gRPC gives it to a handler."""

    seconds: float | None

    @classmethod
    def read(cls, header: str | None) -> "Timeout":
        """None: the call brings no deadline. Raises `BadInput`."""
        if header is None:
            return cls(None)
        match = _TIMEOUT.fullmatch(header)
        if match is None:
            raise BadInput("grpc-timeout", "must be 1 to 8 digits and one of H M S m u n")
        return cls(int(match[1]) * _SECONDS.get(match[2], 1) / _A_SECOND.get(match[2], 1))

    def time_remaining(self) -> float | None:
        """Seconds; None without a deadline."""
        return self.seconds


def write_timeout(left_s: float) -> str:
    """A `grpc-timeout` header that gives at most `left_s`, and at least a millisecond."""
    milliseconds = max(1, math.floor(left_s * 1000))
    return f"{milliseconds}m" if milliseconds <= _MOST_MS else f"{math.floor(left_s)}S"


def first_message(body: bytes | bytearray, encoding: str | None, most_bytes: int) -> bytes | None:
    """The first gRPC message of a body that may not be whole yet; None where it is not.

    `encoding`: the call's `grpc-encoding`. Raises `BadInput` for what is no message, or one of more than `most_bytes`,
    and `Unimplemented` for an encoding that is not known.
    """
    if len(body) < _HEAD_BYTES:
        return None
    packed, size = body[0], int.from_bytes(body[1:_HEAD_BYTES], "big")
    if packed > 1:
        raise BadInput("request", "is not a gRPC message")
    if size > most_bytes:
        raise BadInput("request", f"has {size} bytes; at most {most_bytes}")
    if len(body) < _HEAD_BYTES + size:
        return None
    message = bytes(body[_HEAD_BYTES : _HEAD_BYTES + size])
    return _unpacked(message, encoding or "identity", most_bytes) if packed else message


def _unpacked(packed: bytes, encoding: str, most_bytes: int) -> bytes:
    if encoding not in _WINDOW_BITS:
        raise Unimplemented(f"grpc-encoding: {encoding[:32]!r} is not known; identity, gzip and deflate are")
    unpacking = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        message = unpacking.decompress(packed, most_bytes + 1)
    except zlib.error as error:
        raise BadInput("request", f"is not {encoding}") from error
    if len(message) > most_bytes:
        raise BadInput("request", f"has more than {most_bytes} bytes when it is unpacked; at most as many")
    if not unpacking.eof:
        raise BadInput("request", f"is {encoding} that was cut")
    return message


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call ended, as its trailers say; reads like a finished gRPC call."""

    status: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]

    @classmethod
    def read(cls, trailers: Metadata) -> "Ended | None":
        """None where no status is among them. Binary trailers that are none are left out."""
        code = one(trailers, "grpc-status")
        if code is None:
            return None
        status = _STATUSES.get(code, grpc.StatusCode.UNKNOWN)
        kept = [item for item in map(_decoded, trailers) if item is not None]
        return cls(status, _unescaped(one(trailers, "grpc-message") or ""), tuple(kept))

    def code(self) -> grpc.StatusCode:
        """As a gRPC call has it."""
        return self.status

    def details(self) -> str:
        """As a gRPC call has it."""
        return self.message

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """As a gRPC call has it."""
        return self.trailers

    def error(self) -> HeadwayError | None:
        """What went wrong; None where nothing did."""
        return None if self.status is grpc.StatusCode.OK else from_rpc_error(self)


def to_wire(metadata: Iterable[tuple[str, str | bytes]]) -> list[tuple[str, bytes]]:
    """Metadata as headers carry it: binary values in base64."""
    return [(name, value.encode() if isinstance(value, str) else base64.b64encode(value)) for name, value in metadata]


def _decoded(item: tuple[str, str | bytes]) -> tuple[str, str | bytes] | None:
    name, value = item
    if not name.endswith("-bin") or isinstance(value, bytes):
        return item
    try:
        return name, base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _unescaped(message: str) -> str:
    """`grpc-message` is percent-encoded UTF-8."""
    raw = re.sub(rb"%([0-9A-Fa-f]{2})", lambda match: bytes([int(match[1], 16)]), message.encode("latin-1", "replace"))
    return raw.decode("utf-8", "replace")
