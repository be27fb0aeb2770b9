import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.cli.supervisor import StartFailed, Supervisor, describe, next_pause_s
from headway.cli.topology import AcceptReady, MeshSettings, Part, RedisReady, parts_of
from headway.local_redis import answers, find_server


def _real_parts(folder: Path) -> list[Part]:
    settings = MeshSettings("127.0.0.1:0", folder, folder, None, find_server())
    return [part for part in parts_of(settings) if part.name in {"redis", "device-arbiter"}]


def _shell(name: str, script: str) -> Part:
    return Part(name, ("sh", "-c", script), AcceptReady("unix:/nowhere"), dict(os.environ))


class Running:
    """A supervisor in this test's loop, and what it said."""

    def __init__(self, parts: list[Part]) -> None:
        self.said: list[tuple[str, str]] = []
        self.stop, self.turned = asyncio.Event(), asyncio.Event()
        self.told: dict[str, int] = {}
        self.supervisor = Supervisor(parts, self._say, start_s=20, drain_s=5, changed=self._change)
        self.task = asyncio.create_task(self.supervisor.run(self.stop))

    def _change(self, supervisor: Supervisor) -> None:
        self.told = supervisor.pids
        self.turned.set()

    def _say(self, name: str, line: str) -> None:
        self.said.append((name, line))
        self.turned.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():
                if self.task.done():
                    self.task.result()
                self.turned.clear()
                await asyncio.wait([self.task, asyncio.create_task(self.turned.wait())], return_when="FIRST_COMPLETED")

    def heard(self, name: str, words: str) -> bool:
        return any(who == name and words in line for who, line in self.said)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("m")


async def test_real_parts_come_up_and_leave_nothing(folder: Path) -> None:
    running = Running(_real_parts(folder))
    await running.until(lambda: running.supervisor.ready)
    pids = running.supervisor.pids
    assert set(pids) == {"redis", "device-arbiter"}
    assert await asyncio.to_thread(answers, f"unix://{folder / 'redis.sock'}")
    running.stop.set()
    await running.task
    assert running.supervisor.pids == {}
    assert not any(map(_alive, pids.values()))
    assert running.heard("device-arbiter", "ends after")


async def test_a_part_that_dies_is_named_and_started_again_while_the_rest_go_on(folder: Path) -> None:
    running = Running(_real_parts(folder))
    await running.until(lambda: running.supervisor.ready)
    before = running.supervisor.pids
    os.kill(before["redis"], signal.SIGKILL)
    await running.until(lambda: running.heard("redis", "died (SIGKILL); the rest go on; it starts again in 0.5 s"))
    await running.until(lambda: running.told.get("redis") not in (None, before["redis"]))
    assert running.supervisor.pids["device-arbiter"] == before["device-arbiter"]
    while not await asyncio.to_thread(answers, f"unix://{folder / 'redis.sock'}"):
        assert not running.task.done()
    running.stop.set()
    await running.task


async def test_a_part_that_does_not_start_ends_all_with_its_last_words(folder: Path) -> None:
    running = Running([*_real_parts(folder), _shell("worker", "echo model: no such folder; exit 1")])
    with pytest.raises(StartFailed, match=r"^worker did not start \(exit code 1\): model: no such folder$"):
        await running.task
    assert running.supervisor.pids == {}


async def test_a_part_that_is_never_ready_is_named(folder: Path) -> None:
    supervisor = Supervisor([_shell("slow", "exec sleep 600")], lambda *_: None, start_s=0.2, drain_s=5)
    with pytest.raises(StartFailed, match="not ready after 0 s: slow"):
        await supervisor.run(asyncio.Event())
    assert supervisor.pids == {}


async def test_a_part_that_does_not_drain_is_killed(folder: Path) -> None:
    redis = next(part for part in _real_parts(folder) if part.name == "redis")
    deaf = Part("deaf", ("sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"), redis.ready, redis.env)
    running = Running([redis, deaf])
    running.supervisor._drain_s = 0.2
    await running.until(lambda: running.supervisor.ready and running.heard("deaf", "deaf"))
    pid = running.supervisor.pids["deaf"]
    running.stop.set()
    await running.task
    assert not _alive(pid)


async def test_a_stop_while_it_starts_ends_all(folder: Path) -> None:
    running = Running([_shell("slow", "exec sleep 600")])
    running.stop.set()
    await running.task
    assert running.supervisor.pids == {}


async def test_a_log_line_without_end_is_cut(folder: Path) -> None:
    running = Running([_shell("loud", "head -c 200000 /dev/zero | tr '\\0' x; printf 'end\\nlast'; exit 3")])
    with pytest.raises(StartFailed, match="loud did not start"):
        await running.task
    assert all(len(line) <= 1 << 17 for _, line in running.said)
    assert running.said[-1] == ("loud", "last")


MESH = """
import asyncio, os, sys
from pathlib import Path
from headway.cli.supervisor import Supervisor
from headway.cli.topology import MeshSettings, parts_of
from headway.local_redis import find_server
folder = Path(sys.argv[1])
parts = parts_of(MeshSettings("127.0.0.1:0", folder, folder, None, find_server()))
parts = [part for part in parts if part.name in {"redis", "device-arbiter"}]
def changed(supervisor):
    if supervisor.ready:
        print(*supervisor.pids.values(), flush=True)
asyncio.run(Supervisor(parts, lambda *_: None, start_s=20, drain_s=5, changed=changed).run(asyncio.Event()))
"""


def test_everything_dies_with_the_supervisor(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", MESH, str(folder)], stdout=-1, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.send_signal(signal.SIGKILL)
    assert len(pids) == 2
    assert all(_ends(pid) for pid in pids)


def _ends(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(1000):
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        signal.sigtimedwait([], 0.01)
    return False


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 10), st.floats(0, 100))
def test_pauses_grow_up_to_a_limit_and_start_anew_after_a_stable_life(pause_s: float, lived_s: float) -> None:
    following = next_pause_s(pause_s, lived_s)
    assert 0.5 <= following <= 10
    assert following == 0.5 or (lived_s < 30 and following >= pause_s)


def test_exit_codes_in_words() -> None:
    assert [describe(code) for code in (0, 2, -9, -99)] == ["exit code 0", "exit code 2", "SIGKILL", "signal 99"]


def test_a_ready_part_is_asked_where_it_says(folder: Path) -> None:
    assert [part.ready for part in _real_parts(folder)] == [
        RedisReady(f"unix://{folder / 'redis.sock'}"),
        AcceptReady(f"unix:{folder / 'device.sock'}"),
    ]
