"""A worker's link to the device arbiter, for its engine thread."""

import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from headway.device.wire import (
    NEWS,
    Busy,
    Declare,
    Demand,
    FrameReader,
    Grant,
    Message,
    Others,
    Ping,
    ProtocolError,
    Release,
    Request,
    Running,
    check_declared,
    check_end,
    check_time,
    encode,
)

logger = logging.getLogger(__name__)

_READ_BYTES = 1 << 16
_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 5.0


@dataclass(frozen=True, slots=True)
class Lease:
    """The device, for one step. `granted` is False when no arbiter answered; the step runs all the same."""

    wait_s: float
    granted: bool


class _LinkLost(Exception):
    """The arbiter closed, broke the protocol, or is silent."""


class _Link:
    """One connection. Reading is for the thread that holds the client's `_reading` lock; sending for any."""

    def __init__(self, path: Path, patience_s: float) -> None:
        """Connects, or raises OSError. Blocks for at most `patience_s`."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._reader = FrameReader()
        self._sending = threading.Lock()
        self.tells_news = False
        """Whether the arbiter knows `Busy` and `Running`."""
        try:
            self._socket.settimeout(patience_s)
            self._socket.connect(str(path))
            # The kernel's own timeouts: Python's would cost a second system call for each read.
            self._socket.settimeout(None)
            timeval = struct.pack("ll", int(patience_s), int(patience_s % 1 * 1e6))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        except OSError:
            self._socket.close()
            raise

    def send(self, *messages: Message) -> None:
        """Sends all in one piece, at once. Raises `_LinkLost`: an arbiter that has not read for so long is gone."""
        frame = b"".join(encode(message) for message in messages)
        try:
            with self._sending:
                if self._socket.send(frame, socket.MSG_DONTWAIT) != len(frame):
                    raise _LinkLost("the arbiter does not read")
        except OSError as error:
            raise _LinkLost(str(error)) from error

    def read(self, flags: int = 0) -> tuple[Message, ...] | None:
        """What has come; None when nothing came within the patience, or at once with MSG_DONTWAIT."""
        try:
            received = self._socket.recv(_READ_BYTES, flags)
            if not received:
                raise _LinkLost("the arbiter closed the connection")
            return tuple(self._reader.feed(received))
        except BlockingIOError:
            return None
        except (OSError, ProtocolError) as error:
            raise _LinkLost(str(error)) from error

    def wake(self) -> None:
        """Ends a read in another thread."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


class DeviceClient:
    """Leases of the device for ONE engine thread, and the demand that workers tell each other.

    A second thread that asks for a lease waits until the first has released its own. Without an arbiter
    (`path` None, not there yet, dead, or silent for twice `patience_s`) steps run without a lease: counted in
    `unleased`, logged once, and a thread of the client's own tries to connect again. Close it at the end.
    """

    def __init__(
        self, path: Path | None, *, patience_s: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.unleased = 0
        self._path = path
        self._patience_s = patience_s
        self._clock = clock
        self._link: _Link | None = None
        self._turn = threading.Lock()  # held for a whole lease
        self._reading = threading.Lock()  # held while the socket is read
        self._changing = threading.Lock()  # guards _link, _retrying, _declared, _waiting
        self._closed = threading.Event()
        self._retrying: threading.Thread | None = None
        self._declared: tuple[Demand, ...] = ()
        self._others: tuple[Demand, ...] = ()
        self._busy_until_s: float | None = None
        self._waiting: Request | None = None  # for the device; known to the arbiter
        self._held: tuple[_Link, int] | None = None  # the lease of the block that runs
        self._kept: tuple[_Link, int] | None = None  # a lease that was used and not given back yet
        self._last_id = 0
        if path is not None and not self._connect():
            self._retry(None, f"no device arbiter at {path}")

    @property
    def connected(self) -> bool:
        """Whether an arbiter is there, as far as is known."""
        return self._link is not None

    @contextmanager
    def lease(self, *, due_s: float, label: str = "", keep: bool = False) -> Iterator[Lease]:
        """Holds the device for the block. Blocks until it is granted or the arbiter is known to be gone.

        `due_s`: when the most urgent work of the step is due, in monotonic seconds; finite.
        `label` is for the log. `keep`: the lease lasts until the next one is asked for, in one exchange with the
        arbiter, or until `rest`: else a short step of urgent work would lose the device, before it can ask again, to a
        long step of somebody with time to spare. An exception inside the block or while waiting gives the device back.
        """
        with self._turn:
            began_s, link = self._clock(), self._link
            check_time(due_s)
            lease_id = self._request(link, due_s, label) if link is not None else None
            self._held = None if link is None or lease_id is None else (link, lease_id)
            self.unleased += lease_id is None
            try:
                yield Lease(self._clock() - began_s, lease_id is not None)
            finally:
                self._kept, self._held = self._held, None
                if not keep:
                    self.rest()

    def hurry(self, due_s: float) -> None:
        """Asks anew, for work that is due earlier, where another thread waits in `lease`; else nothing.

        Any thread may. Never blocks on the arbiter.
        """
        check_time(due_s)
        with self._changing:
            before, link = self._waiting, self._link
            if before is None or link is None or before.due_s <= due_s:
                return
            self._waiting = Request(self._next_id(), due_s, before.label)
            try:
                link.send(Release(before.lease_id), self._waiting)
                return
            except _LinkLost as error:
                lost = error
        self._lose(link, lost)

    def rest(self) -> None:
        """Gives a kept lease back, if there is one. Never blocks on the arbiter."""
        kept, self._kept = self._kept, None
        if kept is not None:
            self._tell(kept[0], Release(kept[1]))

    def declare(self, demand: Sequence[tuple[float, float]], *, step_end_s: float | None = None) -> None:
        """Tells the other workers this client's admitted work by deadline, in place of what it told last.

        `demand` holds (deadline in monotonic seconds, device time in ms) pairs; see `Demand`. `step_end_s`: and that
        the step under the lease that is held now has begun, of which nothing is in `demand`, and should end then.
        Never blocks on the arbiter. Raises `ProtocolError` for more than `MAX_BUCKETS` or impossible numbers.
        """
        checked, news = check_declared(demand), list[Message]()
        with self._changing:
            if checked != self._declared:
                news.append(Declare(checked))
            self._declared, link, held = checked, self._link, self._held
        if step_end_s is not None:
            check_end(step_end_s, self._clock())
            if link is not None and link.tells_news and held is not None and held[0] is link:
                news.append(Running(held[1], step_end_s))
        if link is not None and news:
            self._tell(link, *news)

    def others(self) -> tuple[Demand, ...]:
        """The admitted work of the device's other workers, as last told. Never blocks; one system call."""
        link = self._link
        if link is not None and self._reading.acquire(blocking=False):
            try:
                while (messages := link.read(socket.MSG_DONTWAIT)) is not None:
                    self._hear(link, messages)
            except _LinkLost as lost:
                self._lose(link, lost)
            finally:
                self._reading.release()
        return self._others

    @property
    def busy_until_s(self) -> float | None:
        """When the step of another worker that runs now should end, monotonic, as known since `others` was asked last.

        None: none runs, or the arbiter cannot tell. A time that has passed: it may end any moment.
        """
        return self._busy_until_s

    def close(self) -> None:
        """Gives everything back. A thread that waits for a lease goes on without one. Blocks for a moment."""
        self._closed.set()
        with self._changing:
            retrying = self._retrying
        if retrying is not None:
            retrying.join()  # from here on nothing sets a new link
        with self._changing:
            link, self._link = self._link, None
        if link is not None:
            link.wake()
            with self._reading:
                link.close()

    def _next_id(self) -> int:
        self._last_id = (self._last_id + 1) % NEWS
        return self._last_id

    def _request(self, link: _Link, due_s: float, label: str) -> int | None:
        """Waits for the device; returns the lease, or None when the arbiter is gone."""
        with self._reading:
            try:
                kept, self._kept = self._kept, None
                released = [Release(kept[1])] if kept is not None and kept[0] is link else []
                with self._changing:
                    request = Request(self._next_id(), due_s, label)
                    link.send(*released, request)
                    self._waiting = request
                return self._await_grant(link)
            except _LinkLost as lost:
                self._lose(link, lost)
                return None
            except BaseException:
                waiting, self._waiting = self._waiting, None
                if waiting is not None:
                    self._tell(link, Release(waiting.lease_id))
                raise

    def _await_grant(self, link: _Link) -> int:
        asked = False
        while True:
            messages = link.read()
            if messages is None and asked:
                raise _LinkLost(f"the arbiter is silent for {2 * self._patience_s:g} s")
            asked = messages is None
            if messages is None:
                link.send(Ping())
            elif (granted := self._hear(link, messages)) is not None:
                return granted

    def _hear(self, link: _Link, messages: tuple[Message, ...]) -> int | None:
        """Keeps the news; returns the lease that was waited for, if it is granted. Others are of withdrawn requests."""
        granted = None
        for message in messages:
            match message:
                case Others(demand):
                    self._others = demand
                case Busy(end_s):
                    link.tells_news, self._busy_until_s = True, end_s
                case Grant(lease_id):
                    granted = lease_id if self._granted(lease_id) else granted
        return granted

    def _granted(self, lease_id: int) -> bool:
        with self._changing:
            if self._waiting is None or self._waiting.lease_id != lease_id:
                return False
            self._waiting, self._busy_until_s = None, None
            return True

    def _tell(self, link: _Link, *messages: Message) -> None:
        try:
            link.send(*messages)
        except _LinkLost as lost:
            self._lose(link, lost)

    def _connect(self) -> bool:
        assert self._path is not None
        try:
            link = _Link(self._path, self._patience_s)
        except OSError:
            return False
        with self._changing:
            try:
                link.send(Declare(self._declared), Release(NEWS))
            except _LinkLost:
                link.close()
                return False
            self._link = link
        return True

    def _lose(self, link: _Link, why: _LinkLost) -> None:
        with self._changing:
            if self._link is not link:
                return
            self._link, self._others = None, ()
            self._busy_until_s = self._waiting = None
            link.wake()  # the arbiter sees the end at once; the reader, if there is one, too
            self._retry(link, f"device arbiter lost: {why}")

    def _retry(self, lost: _Link | None, why: str) -> None:
        logger.warning("%s; steps run without a lease until it is back", why)
        self._retrying = threading.Thread(target=self._keep_connecting, args=(lost,), name="device", daemon=True)
        self._retrying.start()

    def _keep_connecting(self, lost: _Link | None) -> None:
        if lost is not None:
            with self._reading:  # nobody reads it any more
                lost.close()
        wait_s = _FIRST_RETRY_S
        while not self._closed.wait(wait_s):
            if self._connect():
                logger.info("device arbiter is back")
                return
            wait_s = min(wait_s * 2, _LAST_RETRY_S)
