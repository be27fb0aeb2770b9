"""Frames between the device arbiter and its clients: payload length (u16), type (u8), payload; big-endian.

Times are CLOCK_MONOTONIC seconds, which all processes of a host share.

A peer of an older release drops who sends it a type that it does not know. So `Busy` goes only to clients that have
said `Release(NEWS)`, which an older arbiter ignores as the release of a lease that nobody has, and `Running` only to
an arbiter that has said `Busy`.
"""

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MAX_BUCKETS = 16
"""Most (deadline, work) pairs that one client declares."""
MAX_CLIENTS = 64
MAX_LABEL_BYTES = 64
MAX_STEP_S = 3600.0
"""No step is said to end later than this from now."""
NEWS = 0xFFFFFFFF
"""The id that no lease has: its release asks to be told of the steps of others."""

_HEAD = struct.Struct("!HB")
_LEASE = struct.Struct("!I")
_REQUEST = struct.Struct("!Id")
_DEMAND = struct.Struct("!dd")
_END = struct.Struct("!d")
_RUNNING = struct.Struct("!Id")
_MAX_PAYLOAD_BYTES = MAX_CLIENTS * MAX_BUCKETS * _DEMAND.size


class ProtocolError(ValueError):
    """The peer does not speak this protocol, or exceeds a limit of it."""


class Demand(NamedTuple):
    """Admitted work that is due by `deadline_s`: `remaining_ms` of device time that it takes at least."""

    deadline_s: float
    remaining_ms: float


@dataclass(frozen=True, slots=True)
class Request:
    """Client: wants the device, for work that is due at `due_s`. One at a time per connection."""

    lease_id: int
    due_s: float
    label: str


@dataclass(frozen=True, slots=True)
class Release:
    """Client: the step is over, or the request is withdrawn."""

    lease_id: int


@dataclass(frozen=True, slots=True)
class Declare:
    """Client: its admitted work by deadline, in place of what it declared before; at most `MAX_BUCKETS`."""

    demand: tuple[Demand, ...]


@dataclass(frozen=True, slots=True)
class Ping:
    """Client: is anyone there?"""


@dataclass(frozen=True, slots=True)
class Grant:
    """Arbiter: the device is yours."""

    lease_id: int


@dataclass(frozen=True, slots=True)
class Others:
    """Arbiter: what all other clients have declared."""

    demand: tuple[Demand, ...]


@dataclass(frozen=True, slots=True)
class Pong:
    """Arbiter: yes."""


@dataclass(frozen=True, slots=True)
class Running:
    """Client: the step under this lease has begun, and should end at `end_s`."""

    lease_id: int
    end_s: float


@dataclass(frozen=True, slots=True)
class Busy:
    """Arbiter: when the step that another client runs should end; None: none runs, as far as is known."""

    end_s: float | None


Message = Request | Release | Declare | Ping | Grant | Others | Pong | Running | Busy
_TYPES: tuple[type[Message], ...] = (Request, Release, Declare, Ping, Grant, Others, Pong, Running, Busy)


def encode(message: Message) -> bytes:
    """One frame. Raises `ProtocolError` when a limit is exceeded."""
    payload = _payload(message)
    if len(payload) > _MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"{type(message).__name__} of {len(payload)} bytes; at most {_MAX_PAYLOAD_BYTES}")
    return _HEAD.pack(len(payload), _TYPES.index(type(message))) + payload


def _payload(message: Message) -> bytes:
    match message:
        case Request(lease_id, due_s, label):
            return _REQUEST.pack(lease_id, due_s) + _label_bytes(label)
        case Release(lease_id) | Grant(lease_id):
            return _LEASE.pack(lease_id)
        case Declare(demand) | Others(demand):
            return b"".join(_DEMAND.pack(*item) for item in demand)
        case Running(lease_id, end_s):
            return _RUNNING.pack(lease_id, end_s)
        case Busy(end_s):
            return b"" if end_s is None else _END.pack(end_s)
        case Ping() | Pong():
            return b""


def _label_bytes(label: str) -> bytes:
    return label.encode("utf-8", "replace")[:MAX_LABEL_BYTES]


class FrameReader:
    """Turns the bytes of one connection into messages; holds at most one unfinished frame."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, received: bytes) -> Iterator[Message]:
        """The messages that are complete now. Raises `ProtocolError` at the first bad frame."""
        self._held += received
        while len(self._held) >= _HEAD.size:
            size, kind = _HEAD.unpack_from(self._held)
            if kind >= len(_TYPES) or size > _MAX_PAYLOAD_BYTES:
                raise ProtocolError(f"frame of type {kind} and {size} bytes")
            if len(self._held) < _HEAD.size + size:
                return
            payload = bytes(self._held[_HEAD.size : _HEAD.size + size])
            del self._held[: _HEAD.size + size]
            yield _decode(_TYPES[kind], payload)


def _decode(kind: type[Message], payload: bytes) -> Message:
    try:
        if kind is Request:
            lease_id, due_s = _REQUEST.unpack_from(payload)
            return Request(lease_id, check_time(due_s), _label(payload[_REQUEST.size :]))
        if kind is Release or kind is Grant:
            return kind(*_LEASE.unpack(payload))
        if kind is Declare or kind is Others:
            return kind(tuple(_demand(payload)))
        if kind is Running:
            lease_id, end_s = _RUNNING.unpack(payload)
            return Running(lease_id, check_time(end_s))
        if kind is Busy:
            return Busy(check_time(*_END.unpack(payload)) if payload else None)
    except struct.error as error:
        raise ProtocolError(f"{kind.__name__} of {len(payload)} bytes") from error
    if payload:
        raise ProtocolError(f"{kind.__name__} of {len(payload)} bytes")
    return Ping() if kind is Ping else Pong()


def _demand(payload: bytes) -> Iterable[Demand]:
    # Workers tell each other after every step and admission: this is read hundreds of times a second.
    for deadline_s, remaining_ms in _DEMAND.iter_unpack(payload):
        if not (-math.inf < deadline_s < math.inf and 0 <= remaining_ms < math.inf):
            check_demand(Demand(deadline_s, remaining_ms))
        yield Demand(deadline_s, remaining_ms)


def check_demand(item: Demand) -> Demand:
    """Raises `ProtocolError` unless both are finite and the work is not negative."""
    if check_time(item.remaining_ms) < 0:
        raise ProtocolError("negative remaining work")
    check_time(item.deadline_s)
    return item


def check_end(end_s: float, now_s: float) -> float:
    """Raises `ProtocolError` unless a step may be said to end then."""
    if check_time(end_s) > now_s + MAX_STEP_S:
        raise ProtocolError(f"a step of over {MAX_STEP_S:g} s")
    return end_s


def check_declared(demand: Sequence[tuple[float, float]]) -> tuple[Demand, ...]:
    """What a client may declare. Raises `ProtocolError`, naming the limit."""
    if len(demand) > MAX_BUCKETS:
        raise ProtocolError(f"{len(demand)} buckets of demand; at most {MAX_BUCKETS}")
    return tuple(check_demand(Demand(*item)) for item in demand)


def _label(raw: bytes) -> str:
    if len(raw) > MAX_LABEL_BYTES:
        raise ProtocolError(f"label of {len(raw)} bytes; at most {MAX_LABEL_BYTES}")
    return raw.decode("utf-8", "replace")


def check_time(value: float) -> float:
    """Raises `ProtocolError` for what cannot be sorted or added."""
    if not math.isfinite(value):
        raise ProtocolError("a time that is not finite")
    return value
