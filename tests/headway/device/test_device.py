import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import uvloop

from headway.device import ArbiterError, Demand, DeviceArbiter, DeviceClient
from headway.device.wire import (
    MAX_CLIENTS,
    NEWS,
    Busy,
    Declare,
    FrameReader,
    Grant,
    Ping,
    Pong,
    ProtocolError,
    Release,
    Request,
    Running,
    encode,
)


@contextmanager
def running(path: Path, **settings: float) -> Iterator[DeviceArbiter]:
    """An arbiter on a loop of its own."""
    arbiter, ready = DeviceArbiter(path, **settings), threading.Event()
    loop = uvloop.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with arbiter:
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(5)
    try:
        yield arbiter
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("d") / "s"


@pytest.fixture
def arbiter(path: Path) -> Iterator[DeviceArbiter]:
    with running(path) as arbiter:
        yield arbiter


@contextmanager
def client_of(path: Path | None, patience_s: float = 1.0) -> Iterator[DeviceClient]:
    client = DeviceClient(path, patience_s=patience_s)
    try:
        yield client
    finally:
        client.close()


def eventually(holds: Callable[[], bool], within_s: float = 10.0) -> None:
    end_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end_s, "it did not come to hold"
        threading.Event().wait(0.005)


def connect(path: Path) -> socket.socket:
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    raw.settimeout(5)
    raw.connect(str(path))
    return raw


def test_never_two_holders_and_all_get_their_turn(arbiter: DeviceArbiter, path: Path) -> None:
    inside, most, wrong = 0, 0, []

    def work(number: int) -> None:
        nonlocal inside, most
        with client_of(path) as client:
            for step in range(50):
                with client.lease(due_s=(number * 7 + step * 3) % 11) as lease:
                    inside += 1
                    most = max(most, inside)
                    if not lease.granted:
                        wrong.append(step)
                    os.sched_yield()
                    inside -= 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, wrong, arbiter.stats.grants) == (1, [], 300)


def test_waiters_are_served_by_deadline(arbiter: DeviceArbiter, path: Path) -> None:
    order: list[float] = []

    def work(due_s: float) -> None:
        with client_of(path) as client, client.lease(due_s=due_s):
            order.append(due_s)

    threads = [threading.Thread(target=work, args=(start_s,)) for start_s in (30.0, 10.0, 20.0)]
    with client_of(path) as holder, holder.lease(due_s=99.0):
        for thread in threads:
            thread.start()
        eventually(lambda: arbiter._queue.waiting == 3)
    for thread in threads:
        thread.join()
    assert order == [10.0, 20.0, 30.0]


HOLD = """
import sys
from pathlib import Path
from headway.device import Demand, DeviceClient
client = DeviceClient(Path(sys.argv[1]))
client.declare([Demand(50.0, 7.0)])
with client.lease(due_s=1.0, label="victim"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_death_of_a_holder_frees_the_device_and_its_demand(arbiter: DeviceArbiter, path: Path) -> None:
    with client_of(path) as client:
        holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=-1, stdout=-1)
        with holder:
            assert holder.stdout.readline() == b"held\n"
            eventually(lambda: client.others() == (Demand(50.0, 7.0),))
            holder.send_signal(signal.SIGKILL)
        with client.lease(due_s=2.0) as lease:
            assert lease.granted
        assert client.others() == ()


def test_an_exception_in_a_step_gives_the_device_back(arbiter: DeviceArbiter, path: Path) -> None:
    with client_of(path) as first, client_of(path) as second:
        with pytest.raises(ZeroDivisionError), first.lease(due_s=1.0):
            raise ZeroDivisionError
        with second.lease(due_s=1.0) as lease:
            assert lease.granted


def test_a_close_ends_a_wait(arbiter: DeviceArbiter, path: Path) -> None:
    granted: list[bool] = []
    with client_of(path) as holder, client_of(path) as waiter:

        def wait() -> None:
            with waiter.lease(due_s=1.0) as lease:
                granted.append(lease.granted)

        thread = threading.Thread(target=wait)
        with holder.lease(due_s=1.0):
            thread.start()
            eventually(lambda: arbiter._queue.waiting == 1)
            waiter.close()
            thread.join()
            eventually(lambda: arbiter._queue.waiting == 0)
    assert granted == [False]


def test_others_are_told_and_the_last_word_counts(arbiter: DeviceArbiter, path: Path) -> None:
    with client_of(path) as first, client_of(path) as second, client_of(path) as third:
        for deadline_s in (3.0, 2.0, 1.0):
            first.declare([Demand(deadline_s, 4.0)])
        second.declare([Demand(9.0, 1.0)])
        eventually(lambda: sorted(third.others()) == [(1.0, 4.0), (9.0, 1.0)])
        eventually(lambda: first.others() == (Demand(9.0, 1.0),))
        second.close()
        eventually(lambda: third.others() == (Demand(1.0, 4.0),))


def test_a_grant_carries_the_latest_demand(path: Path) -> None:
    with running(path, relay_interval_s=3600) as arbiter, client_of(path) as first, client_of(path) as second:
        first.declare([Demand(3.0, 4.0)])
        with first.lease(due_s=0.0):
            assert arbiter.stats.grants == 1  # so the declaration before it was read
        with second.lease(due_s=0.0):
            assert second.others() == (Demand(3.0, 4.0),)


def test_bad_numbers_are_refused_before_they_are_sent(arbiter: DeviceArbiter, path: Path) -> None:
    with client_of(path) as client:
        with pytest.raises(ProtocolError), client.lease(due_s=float("nan")):
            pass
        with pytest.raises(ProtocolError):
            client.declare([Demand(1.0, -1.0)])
        with client.lease(due_s=1.0) as lease:
            assert lease.granted


def test_without_an_arbiter_steps_run_and_it_is_taken_up_when_it_comes(path: Path) -> None:
    with client_of(path) as client, client_of(None) as alone:
        client.declare([Demand(1.0, 2.0)])
        for one in (client, alone):
            with one.lease(due_s=1.0) as lease:
                assert not lease.granted
        assert (client.unleased, alone.unleased) == (1, 1)
        with running(path), client_of(path) as witness:
            eventually(lambda: client.connected)
            with client.lease(due_s=1.0) as lease:
                assert lease.granted
            eventually(lambda: witness.others() == (Demand(1.0, 2.0),))
        eventually(lambda: client.others() == () and not client.connected)


def test_an_arbiter_that_dies_leaves_the_waiter_free_and_a_new_one_is_found(path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-m", "headway.device", "--socket", str(path)])
    with process, ExitStack() as stack:
        stack.callback(process.kill)
        eventually(path.exists)
        client = stack.enter_context(client_of(path))
        eventually(lambda: client.connected)
        with client.lease(due_s=1.0) as lease:
            assert lease.granted
        process.send_signal(signal.SIGKILL)
        process.wait()
        with client.lease(due_s=1.0) as lease:
            assert not lease.granted
        with running(path):  # over the stale socket
            eventually(lambda: client.connected)


def test_a_silent_arbiter_counts_as_gone(path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener:
        listener.bind(str(path))
        listener.listen()
        with client_of(path, patience_s=0.05) as client, client.lease(due_s=1.0) as lease:
            assert not lease.granted


def test_garbage_ends_only_its_own_connection(arbiter: DeviceArbiter, path: Path) -> None:
    twice = encode(Request(1, 1.0, "")) + encode(Request(2, 1.0, ""))
    with client_of(path) as client, client.lease(due_s=0.0):
        for garbage in (b"\xff" * 100, twice, encode(Grant(1)), encode(Pong())):
            with connect(path) as raw:
                raw.sendall(garbage)
                assert raw.recv(100) == b""
    eventually(lambda: arbiter.stats.bad_frames == 4)
    with client_of(path) as client, client.lease(due_s=0.0) as lease:
        assert lease.granted


def test_who_asks_and_never_reads_is_dropped(arbiter: DeviceArbiter, path: Path) -> None:
    with connect(path) as raw:
        raw.settimeout(60)  # this host may be busy
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            raw.sendall(encode(Ping()) * 10_000_000)
    assert arbiter.stats.bad_frames == 1


def test_connections_are_limited(arbiter: DeviceArbiter, path: Path) -> None:
    with ExitStack() as stack:
        for _ in range(MAX_CLIENTS):
            raw = stack.enter_context(connect(path))
            raw.sendall(encode(Ping()))
            assert next(FrameReader().feed(raw.recv(100))) == Pong()
        assert stack.enter_context(connect(path)).recv(1) == b""
    assert arbiter.stats.refused_connections == 1


def test_a_stuck_lease_is_counted_and_not_broken(path: Path) -> None:
    with running(path, stuck_s=0.01) as arbiter, client_of(path) as client:
        with client.lease(due_s=1.0, label="slow"):
            eventually(lambda: arbiter.stats.stuck == 1)
            assert arbiter._queue.holder is not None
        with client.lease(due_s=1.0) as lease:
            assert lease.granted


def test_a_withdrawn_request_is_not_granted_later(arbiter: DeviceArbiter, path: Path) -> None:
    with connect(path) as raw, client_of(path) as holder:
        with holder.lease(due_s=1.0):
            raw.sendall(encode(Request(5, 0.0, "")) + encode(Release(5)) + encode(Ping()))
            assert list(FrameReader().feed(raw.recv(100))) == [Pong()]
        with holder.lease(due_s=1.0) as lease:
            assert lease.granted


def test_the_socket_is_private_and_goes_with_the_arbiter(path: Path) -> None:
    with running(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


async def test_a_second_arbiter_on_a_socket_is_refused(path: Path) -> None:
    async with DeviceArbiter(path):
        with pytest.raises(ArbiterError, match="another arbiter serves it"):
            await DeviceArbiter(path).__aenter__()


def test_a_socket_that_cannot_be_had_is_an_error_that_names_it(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(ArbiterError, match="no socket"):
        asyncio.run(DeviceArbiter(path).__aenter__())
    assert path.read_text() == "precious"
    with pytest.raises(ArbiterError, match="longer than 103 bytes"):
        asyncio.run(DeviceArbiter(path.parent / ("x" * 120)).__aenter__())
    with pytest.raises(ArbiterError, match="cannot be written"):
        asyncio.run(DeviceArbiter(path / "below" / "it").__aenter__())


def test_the_command_ends_on_sigterm_and_says_what_is_wrong(path: Path) -> None:
    command = [sys.executable, "-m", "headway.device", "--socket"]
    process = subprocess.Popen([*command, str(path)])
    with process:
        eventually(path.exists)
        busy = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
    assert busy.returncode == 2
    assert busy.stderr == f"headway-device: socket {path}: another arbiter serves it\n"


def test_urgent_work_keeps_the_device_from_step_to_step(arbiter: DeviceArbiter, path: Path) -> None:
    """Three short urgent steps against one patient step that waits from the first on: the patient one comes last."""
    order: list[str] = []
    with client_of(path) as urgent, client_of(path) as patient:

        def wait_for_one() -> None:
            with patient.lease(due_s=100.0, label="patient"):
                order.append("patient")

        thread = threading.Thread(target=wait_for_one)
        for _ in range(3):
            with urgent.lease(due_s=1.0, label="urgent", keep=True):
                if not thread.ident:
                    thread.start()
                    eventually(lambda: arbiter._queue.waiting == 1)
                order.append("urgent")
        urgent.rest()
        thread.join(10)
    assert order == ["urgent"] * 3 + ["patient"]


def test_a_kept_lease_yields_to_more_urgent_work_at_the_next_step(arbiter: DeviceArbiter, path: Path) -> None:
    order: list[str] = []
    with client_of(path) as patient, client_of(path) as urgent:

        def wait_for_one() -> None:
            with urgent.lease(due_s=1.0, label="urgent"):
                order.append("urgent")

        thread = threading.Thread(target=wait_for_one)
        with patient.lease(due_s=100.0, label="patient", keep=True):
            thread.start()
            eventually(lambda: arbiter._queue.waiting == 1)
            order.append("patient")
        with patient.lease(due_s=100.0, label="patient"):
            order.append("patient")
        thread.join(10)
    assert order == ["patient", "urgent", "patient"]


def busy(client: DeviceClient) -> float | None:
    client.others()
    return client.busy_until_s


def test_others_know_when_the_step_that_runs_should_end(arbiter: DeviceArbiter, path: Path) -> None:
    end_s = time.monotonic() + 60.0
    with client_of(path) as first, client_of(path) as second, client_of(path) as third:
        with first.lease(due_s=1.0) as lease:
            assert lease.granted
            eventually(lambda: first._link is not None and first._link.tells_news)
            first.declare([Demand(9.0, 1.0)], step_end_s=end_s)
            eventually(lambda: busy(second) == busy(third) == end_s)
            assert second.others() == (Demand(9.0, 1.0),), "told together"
            assert busy(first) is None
        eventually(lambda: busy(second) is busy(third) is None)
        with second.lease(due_s=1.0):
            first.declare([], step_end_s=end_s)  # it holds nothing
            eventually(lambda: third.others() == ())
            assert busy(third) is None


def test_what_is_granted_is_not_behind_the_step_before_it(arbiter: DeviceArbiter, path: Path) -> None:
    with client_of(path) as first, client_of(path) as second:
        with first.lease(due_s=1.0):
            eventually(lambda: first._link is not None and first._link.tells_news)
            first.declare([], step_end_s=time.monotonic() + 60.0)
            eventually(lambda: busy(second) is not None)
        with second.lease(due_s=1.0):
            assert second.busy_until_s is None


def test_who_waits_can_be_told_to_hurry(arbiter: DeviceArbiter, path: Path) -> None:
    order: list[str] = []
    with client_of(path) as holder, client_of(path) as patient, client_of(path) as other:

        def work(client: DeviceClient, due_s: float, name: str) -> None:
            with client.lease(due_s=due_s, label=name) as lease:
                assert lease.granted
                order.append(name)

        threads = [
            threading.Thread(target=work, args=(patient, 50.0, "patient")),
            threading.Thread(target=work, args=(other, 20.0, "other")),
        ]
        with holder.lease(due_s=1.0):
            for thread in threads:
                thread.start()
            eventually(lambda: arbiter._queue.waiting == 2)
            patient.hurry(60.0)  # it is due earlier already
            patient.hurry(10.0)
            holder.hurry(0.5)  # it does not wait
            eventually(lambda: {waiter.due_s for waiter in arbiter._queue._claims.values()} == {1.0, 10.0, 20.0})
        for thread in threads:
            thread.join(10)
    assert order == ["patient", "other"]


def test_a_client_of_an_older_release_is_told_nothing_that_it_does_not_know(arbiter: DeviceArbiter, path: Path) -> None:
    with connect(path) as old, client_of(path) as client, client.lease(due_s=1.0):
        eventually(lambda: client._link is not None and client._link.tells_news)
        client.declare([Demand(2.0, 3.0)], step_end_s=time.monotonic() + 60.0)
        old.sendall(encode(Ping()))
        received, reader = list[object](), FrameReader()
        while Pong() not in received:
            received += reader.feed(old.recv(100))
    assert not any(isinstance(message, Busy) for message in received)


def test_an_arbiter_of_an_older_release_is_sent_nothing_that_it_does_not_know(path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener:
        listener.bind(str(path))
        listener.listen()
        with client_of(path) as client:
            arbiter, _ = listener.accept()
            with arbiter:
                arbiter.sendall(encode(Grant(1)))  # its first lease, before it asks
                with client.lease(due_s=1.0) as lease:
                    assert lease.granted
                    client.declare([Demand(2.0, 3.0)], step_end_s=time.monotonic() + 60.0)
                sent, reader = list[object](), FrameReader()
                while Release(1) not in sent:
                    sent += reader.feed(arbiter.recv(1000))
    assert sent == [Declare(()), Release(NEWS), Request(1, 1.0, ""), Declare((Demand(2.0, 3.0),)), Release(1)]


def test_who_says_that_its_step_never_ends_is_dropped(arbiter: DeviceArbiter, path: Path) -> None:
    with connect(path) as raw, client_of(path) as client:
        raw.sendall(encode(Request(1, 1.0, "")))
        assert next(FrameReader().feed(raw.recv(100))) == Grant(1)
        raw.sendall(encode(Running(1, 1e300)))
        assert raw.recv(100) == b""
        with client.lease(due_s=1.0) as lease:
            assert lease.granted
            assert client.busy_until_s is None
