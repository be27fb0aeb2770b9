"""The arbiter of one device: an asyncio server on a Unix socket that lets one client at a time run a step."""

import asyncio
import fcntl
import logging
import math
import os
import socket
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

from headway.device.order import ClaimError, DemandBoard, LeaseQueue, Waiter
from headway.device.wire import (
    MAX_CLIENTS,
    NEWS,
    Busy,
    Declare,
    FrameReader,
    Grant,
    Message,
    Others,
    Ping,
    Pong,
    ProtocolError,
    Release,
    Request,
    Running,
    check_declared,
    check_end,
    encode,
)

logger = logging.getLogger(__name__)

_MAX_PATH_BYTES = 103
"""What fits a Unix socket's address everywhere (macOS has the least)."""
_MAX_UNREAD_BYTES = 1 << 20
"""A client that keeps asking and never reads is dropped at this."""


class ArbiterError(RuntimeError):
    """The arbiter cannot have its socket; says which and why."""


@dataclass(slots=True)
class ArbiterStats:
    """Counts since the start."""

    grants: int = 0
    stuck: int = 0
    refused_connections: int = 0
    bad_frames: int = 0


class DeviceArbiter:
    """Grants one lease at a time, earliest `due_s` first; it ends by release or with its connection.

    An asynchronous context manager. Raises `ArbiterError` on entry when the socket cannot be had. A lease
    held longer than `stuck_s` is logged and counted, never broken: the device is busy whatever we say.
    """

    def __init__(
        self,
        path: Path,
        *,
        stuck_s: float = 5.0,
        relay_interval_s: float = 0.001,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`relay_interval_s`: clients are told of each other at once, but no more often than this."""
        self.stats = ArbiterStats()
        self._path = path
        self._stuck_s = stuck_s
        self._relay_interval_s, self._clock = relay_interval_s, clock
        self._relayed_s = -math.inf
        self._news = False
        """Something has changed since clients were told."""
        self._queue: LeaseQueue[_Connection] = LeaseQueue()
        self._board: DemandBoard[_Connection] = DemandBoard()
        self._connections: set[_Connection] = set()
        self._relay: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._lock = _lock(self._path)
        try:
            self._server = await asyncio.get_running_loop().create_unix_server(
                lambda: _Connection(self), sock=_bind(self._path)
            )
        except BaseException:
            os.close(self._lock)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in tuple(self._connections):
            connection.transport.abort()
        await self._server.wait_closed()
        for timer in (self._relay, self._stuck):
            if timer is not None:
                timer.cancel()
        self._path.unlink(missing_ok=True)
        os.close(self._lock)

    def connected(self, connection: "_Connection") -> None:
        """Takes the connection, or drops it when there are too many."""
        if len(self._connections) >= MAX_CLIENTS:
            self.stats.refused_connections += 1
            connection.transport.abort()
            return
        self._connections.add(connection)
        self.tell_others(connection)

    def lost(self, connection: "_Connection") -> None:
        """Ends what a closed connection held, waited for and had declared, at once."""
        self._connections.discard(connection)
        self._queue.end(connection)
        self._board.declare(connection, ())
        self._news = True
        self.grant()
        self.relay()

    def received(self, connection: "_Connection", message: Message) -> None:
        """Applies one message. Raises `ProtocolError` when it is not for an arbiter or breaks a rule."""
        self._news = self._news or isinstance(message, Release | Running | Declare)
        match message:
            case Request(lease_id, due_s, label):
                self._ask(connection, lease_id, due_s, label)
            case Release(lease_id) if lease_id == NEWS:
                connection.wants_news = True
                connection.tell(Busy(self._queue.busy_until_s(connection)))
            case Release(lease_id):
                self._queue.end(connection, lease_id)
            case Running(lease_id, end_s):
                self._queue.running(connection, lease_id, check_end(end_s, self._clock()))
            case Declare(demand):
                self._board.declare(connection, check_declared(demand))
            case Ping():
                connection.tell(Pong())
            case _:
                raise ProtocolError(f"{type(message).__name__} is not for an arbiter")

    def _ask(self, connection: "_Connection", lease_id: int, due_s: float, label: str) -> None:
        try:
            self._queue.ask(connection, lease_id, due_s, label)
        except ClaimError as error:
            raise ProtocolError(str(error)) from error

    def grant(self) -> None:
        """Gives the device to the most urgent waiter, if it is free."""
        waiter = self._queue.grant()
        if waiter is None:
            return
        self.stats.grants += 1
        waiter.client.tell(Others(self._board.others(waiter.client)), Grant(waiter.lease_id))
        if self._stuck is not None:
            self._stuck.cancel()
        self._stuck = asyncio.get_running_loop().call_later(self._stuck_s, self._check_stuck, waiter)

    def _check_stuck(self, waiter: "Waiter[_Connection]") -> None:
        if self._queue.holder is waiter:
            self.stats.stuck += 1
            logger.warning(
                "lease of %s held for over %g s; %d wait",
                waiter.label or "?",
                self._stuck_s,
                self._queue.waiting,
            )

    def relay(self) -> None:
        """Tells every client what has changed for it, now or when it is time."""
        if not self._news:
            return
        wait_s = self._relayed_s + self._relay_interval_s - self._clock()
        if wait_s <= 0:
            self._relay_now()
        elif self._relay is None:
            self._relay = asyncio.get_running_loop().call_later(wait_s, self._relay_now)

    def _relay_now(self) -> None:
        if self._relay is not None:
            self._relay.cancel()
            self._relay = None
        self._relayed_s, self._news = self._clock(), False
        for connection in self._connections:
            self.tell_others(connection)

    def tell_others(self, connection: "_Connection") -> None:
        """Tells the client of the others, unless it has not read what it was told before."""
        if not connection.paused:
            others, end_s = self._board.others(connection), self._queue.busy_until_s(connection)
            connection.tell(Others(others), *([Busy(end_s)] if connection.wants_news else []))


class _Connection(asyncio.Protocol):
    """One client. Garbage ends this connection and no other."""

    transport: asyncio.Transport

    def __init__(self, arbiter: DeviceArbiter) -> None:
        self._arbiter = arbiter
        self._reader = FrameReader()
        self._told: dict[type[Message], Message] = {Others: Others(())}
        self.paused = False
        self.wants_news = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only
        self.transport.set_write_buffer_limits(high=0)  # what it does not read now is told anew when it reads again
        self._arbiter.connected(self)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._reader.feed(data):
                self._arbiter.received(self, message)
            # Only now: a release and the next request that came together are one exchange, in which the client stays
            # in the running for the device that it gives back.
            self._arbiter.grant()
            self._arbiter.relay()
            if self.transport.get_write_buffer_size() > _MAX_UNREAD_BYTES:
                raise ProtocolError("it asks and does not read")
        except ProtocolError as error:
            self._arbiter.stats.bad_frames += 1
            logger.warning("dropped a device client: %s", error)
            self.transport.abort()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._arbiter.tell_others(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._arbiter.lost(self)

    def tell(self, *messages: Message) -> None:
        """Sends in one write; what others do only when it differs from what was sent last."""
        fresh = [message for message in messages if self._told.get(type(message)) != message]
        self._told |= {type(message): message for message in fresh if isinstance(message, Others | Busy)}
        if fresh:
            self.transport.write(b"".join(encode(message) for message in fresh))


def _lock(path: Path) -> int:
    """Holds `PATH.lock` while this arbiter lives, so that a socket nobody serves is known to be stale."""
    try:
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ArbiterError(f"socket {path}: its folder cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise ArbiterError(f"socket {path}: another arbiter serves it") from error
    return lock


def _bind(path: Path) -> socket.socket:
    """A listening address with mode 0600; takes the place of a stale socket and of nothing else."""
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise ArbiterError(f"socket {path}: path is longer than {_MAX_PATH_BYTES} bytes")
    if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
        raise ArbiterError(f"socket {path}: a file that is no socket is there")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), 0o600)  # on Linux the file is born with this mode
        listener.bind(str(path))
        path.chmod(0o600)
    except OSError as error:
        listener.close()
        raise ArbiterError(f"socket {path}: {error.strerror}") from error
    return listener
