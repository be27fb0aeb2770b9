"""Runs the parts of a mesh as child processes: starts them, passes on their logs, starts again what dies, stops all."""

import asyncio
import contextlib
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from typing import Any

from headway.cli.readiness import is_ready
from headway.cli.topology import Part, Ready
from headway.lifeline import tied

Say = Callable[[str, str], None]
"""Takes the name of a part and one line about it or from it."""

_FIRST_PAUSE_S = 0.5
_LAST_PAUSE_S = 10.0
_STABLE_S = 30.0
_POLL_S = 0.2
_MOST_LINE_BYTES = 1 << 16
_LAST_LINES = 5
_EVENT = "event"


class StartFailed(RuntimeError):
    """A part ended or was not ready in time while the mesh started; says which, and its last words."""


def next_pause_s(pause_s: float, lived_s: float) -> float:
    """How long to wait before a part that lived for `lived_s` starts again, after `pause_s` the last time."""
    return _FIRST_PAUSE_S if lived_s >= _STABLE_S else min(max(pause_s * 2, _FIRST_PAUSE_S), _LAST_PAUSE_S)


class _Child:
    """One part and the process that runs it now."""

    def __init__(self, part: Part, say: Say) -> None:
        self.part, self._say = part, say
        self.process: asyncio.subprocess.Process | None = None
        self.was_ready = False
        self.turn = asyncio.Event()
        """Set when it may start."""
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)

    @property
    def name(self) -> str:
        return self.part.name

    async def start(self, stopping: asyncio.Event) -> None:
        """Starts the process."""
        # A session of its own: Ctrl-C is for us alone, and we drain in order.
        self.process = await asyncio.create_subprocess_exec(
            *tied(self.part.command),
            env=dict(self.part.env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        if stopping.is_set():  # while it was started
            self.signal(signal.SIGTERM)

    async def end(self) -> int:
        """Passes on what the process says until it ends; returns its exit code, negative for a signal."""
        assert self.process is not None and self.process.stdout is not None
        await self._pass_on(self.process.stdout)
        return await self.process.wait()

    async def _pass_on(self, output: asyncio.StreamReader) -> None:
        rest = b""
        while chunk := await output.read(_MOST_LINE_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _MOST_LINE_BYTES:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._line(line)
        if rest:
            self._line(rest)

    def _line(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip()
        self.last_lines.append(text)
        self._say(self.name, text)

    def signal(self, signum: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signum)


class Supervisor:
    """Keeps the parts running until told to stop. `changed` is called when a process id or the readiness changes."""

    def __init__(
        self,
        parts: Sequence[Part],
        say: Say,
        *,
        start_s: float,
        drain_s: float,
        changed: Callable[["Supervisor"], None] = lambda _: None,
        ask: Callable[[Ready], Awaitable[bool]] = is_ready,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ready = False
        self._children = [_Child(part, say) for part in parts]
        self._say, self._changed, self._ask, self._clock = say, changed, ask, clock
        self._start_s, self._drain_s = start_s, drain_s
        self._stopping = asyncio.Event()
        self._early_end = asyncio.Event()

    @property
    def pids(self) -> dict[str, int]:
        """The process id of each part that runs now, by name."""
        running = [(child.name, child.process) for child in self._children]
        return {name: process.pid for name, process in running if process is not None and process.returncode is None}

    async def run(self, stop: asyncio.Event) -> None:
        """Starts all, keeps them running until `stop` is set, then drains and stops all.

        Raises `StartFailed` when a part does not come up; nothing is left running then either.
        """
        keepers = [asyncio.create_task(self._keep(child)) for child in self._children]
        try:
            await self._start(stop)
            await _first_of(*_events(stop), *keepers)  # a keeper ends before `stop` only by a fault of ours
        finally:
            await asyncio.shield(self._stop(keepers))
        for keeper in keepers:
            keeper.result()

    def kill(self) -> None:
        """Ends all at once, without draining."""
        for child in self._children:
            child.signal(signal.SIGKILL)

    async def _keep(self, child: _Child) -> None:
        pause_s = 0.0
        await _first_of(*_events(child.turn, self._stopping))
        while not self._stopping.is_set():
            began_s = self._clock()
            await child.start(self._stopping)
            self._changed(self)
            code = await child.end()
            self._changed(self)
            if self._stopping.is_set():
                return
            if not self.ready:
                self._early_end.set()
                return
            pause_s = next_pause_s(pause_s, self._clock() - began_s)
            self._say(child.name, f"died ({describe(code)}); the rest go on; it starts again in {pause_s:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)

    async def _start(self, stop: asyncio.Event) -> None:
        began_s = self._clock()
        all_ready = asyncio.create_task(self._all_ready())
        await _first_of(all_ready, *_events(stop, self._early_end), timeout_s=self._start_s)
        all_ready.cancel()
        await asyncio.gather(all_ready, return_exceptions=True)
        if stop.is_set():
            return
        late = [child for child in self._children if not child.was_ready]
        if late:
            raise StartFailed(self._why(late, self._clock() - began_s))
        self.ready = True
        self._changed(self)

    async def _all_ready(self) -> None:
        # One after the other: what a worker measures of this host while others load is wrong.
        for child in self._children:
            child.turn.set()
            await self._until_ready(child, self._clock())

    async def _until_ready(self, child: _Child, began_s: float) -> None:
        while child.process is None or not await self._ask(child.part.ready):  # noqa: ASYNC110 - another process sets none
            await asyncio.sleep(_POLL_S)
        child.was_ready = True
        self._say(child.name, f"ready after {self._clock() - began_s:.1f} s")
        self._changed(self)

    def _why(self, late: Sequence[_Child], took_s: float) -> str:
        ended = [child for child in self._children if child.process and child.process.returncode is not None]
        if not ended:
            return f"not ready after {took_s:.0f} s: {', '.join(child.name for child in late)}"
        child = ended[0]
        assert child.process is not None and child.process.returncode is not None
        last = child.last_lines[-1] if child.last_lines else "it said nothing"
        return f"{child.name} did not start ({describe(child.process.returncode)}): {last}"

    async def _stop(self, keepers: Sequence["asyncio.Task[None]"]) -> None:
        """Stops in the opposite order of starting; all workers at once, so that they drain together."""
        self._stopping.set()
        for _, group in groupby(reversed(self._children), key=lambda child: child.name.rpartition("-")[2]):
            children = list(group)
            for child in children:
                child.signal(signal.SIGTERM)
            await self._until_ended(children)
        await asyncio.gather(*keepers, return_exceptions=True)

    async def _until_ended(self, children: Sequence[_Child]) -> None:
        processes = [child.process for child in children if child.process is not None]
        ends = [asyncio.create_task(process.wait()) for process in processes]
        if not ends:
            return
        _, pending = await asyncio.wait(ends, timeout=self._drain_s)
        if pending:
            for child in children:
                child.signal(signal.SIGKILL)
            await asyncio.gather(*ends)


def describe(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _events(*events: asyncio.Event) -> list["asyncio.Task[Any]"]:
    return [asyncio.create_task(event.wait(), name=_EVENT) for event in events]


async def _first_of(*tasks: "asyncio.Task[Any]", timeout_s: float | None = None) -> None:
    """Returns when the first task is done or time is up; cancels those that only wait for an event."""
    await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.get_name() == _EVENT:
            task.cancel()
