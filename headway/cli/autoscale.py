"""`headway up --autoscale MIN:MAX`: workers come and go by the router's scaling signal, the one that KEDA gets."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import grpc

from headway.channels import open_channel
from headway.cli.supervisor import Say, StartFailed, Supervisor
from headway.cli.topology import Part
from headway.v1 import keda_pb2, keda_pb2_grpc

LOOK_S = 2.0
REST_S = 30.0
"""A worker goes when fewer were wanted for as long, and then one at a time."""
MOST_WORKERS = 16
_ASK_S = 2.0
_PAUSE_S = 60.0


def read_bounds(text: str) -> tuple[int, int]:
    """MIN:MAX, workers of each kind. Raises ValueError."""
    least, colon, most = text.partition(":")
    if not (colon and least.isascii() and least.isdigit() and most.isascii() and most.isdigit()):
        raise ValueError("must be MIN:MAX, such as 1:3")
    if not 1 <= int(least) <= int(most) <= MOST_WORKERS:
        raise ValueError(f"MIN must be at least 1, MAX at least MIN and at most {MOST_WORKERS}")
    return int(least), int(most)


@dataclass(slots=True)
class Pace:
    """How fast the number of one kind's workers follows the signal: up at once, down slowly."""

    least: int
    most: int
    _fewer_since_s: float | None = None

    def target(self, running: int, desired: int, now_s: float) -> int:
        """How many are to run now. Mutates the pace; no clock."""
        wanted = min(self.most, max(self.least, desired))
        if wanted >= running:
            self._fewer_since_s = None
            return wanted
        if self._fewer_since_s is None:
            self._fewer_since_s = now_s
        if now_s - self._fewer_since_s < REST_S:
            return running
        self._fewer_since_s = now_s
        return running - 1


@dataclass(slots=True)
class _Extra:
    """A worker that came."""

    stop: asyncio.Event
    task: "asyncio.Task[None]"


@dataclass(slots=True)
class _Kind:
    parts: Sequence[Part]
    pace: Pace
    extras: list[_Extra] = field(default_factory=list)


class Autoscaler:
    """Starts and drains the workers that run only while they are wanted."""

    def __init__(
        self,
        router: str,
        spare: Mapping[str, Sequence[Part]],
        bounds: tuple[int, int],
        run: Callable[[Part, asyncio.Event], "asyncio.Task[None]"],
        say: Say,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`router` is its address; `run` runs a part until the event is set: see `runner`."""
        self._router, self._least, self._run, self._say, self._clock = router, bounds[0], run, say, clock
        self._kinds = {kind: _Kind(parts, Pace(*bounds)) for kind, parts in spare.items()}

    async def follow(self) -> None:
        """Looks again and again until cancelled; then drains and ends all that came."""
        async with open_channel(self._router) as channel:
            stub = keda_pb2_grpc.ExternalScalerStub(channel)
            try:
                while True:
                    for kind in self._kinds:
                        await self._look(stub, kind)
                    await asyncio.sleep(LOOK_S)
            finally:
                await asyncio.shield(self._end())

    async def _look(self, stub: keda_pb2_grpc.ExternalScalerStub, name: str) -> None:
        """Without an answer from the router all stays as it is."""
        scaled = keda_pb2.ScaledObjectRef(name=name, scalerMetadata={"kind": name})
        try:
            told = await stub.GetMetrics(keda_pb2.GetMetricsRequest(scaledObjectRef=scaled), timeout=_ASK_S)
        except grpc.aio.AioRpcError:
            return
        await self.scale(name, told.metricValues[0].metricValue)

    async def scale(self, name: str, desired: int) -> None:
        """Takes in how many workers of a kind are wanted."""
        kind = self._kinds[name]
        kind.extras = [extra for extra in kind.extras if not extra.task.done()]
        running = self._least + len(kind.extras)
        target = kind.pace.target(running, desired, self._clock())
        for _ in range(target - running):
            self._add(name, kind)
        for extra in kind.extras[target - self._least :]:
            if not extra.stop.is_set():
                self._say(extra.task.get_name(), "drains and ends, because fewer workers are wanted")
            extra.stop.set()

    def _add(self, name: str, kind: _Kind) -> None:
        used = {extra.task.get_name() for extra in kind.extras}
        part = next(part for part in kind.parts if part.name not in used)
        self._say(part.name, f"starts, because more workers for {name} are wanted")
        stop = asyncio.Event()
        task = self._run(part, stop)
        task.set_name(part.name)
        kind.extras.append(_Extra(stop, task))

    async def _end(self) -> None:
        extras = [extra for kind in self._kinds.values() for extra in kind.extras]
        for extra in extras:
            extra.stop.set()
        await asyncio.gather(*(extra.task for extra in extras), return_exceptions=True)


def runner(say: Say, *, start_s: float, drain_s: float) -> Callable[[Part, asyncio.Event], "asyncio.Task[None]"]:
    """Runs a part as the mesh's others are run. One that does not come up is tried again after a minute."""

    async def run(part: Part, stop: asyncio.Event) -> None:
        try:
            await Supervisor([part], say, start_s=start_s, drain_s=drain_s).run(stop)
        except StartFailed as failure:
            say(part.name, str(failure))
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _PAUSE_S)
        else:
            say(part.name, "ended")

    return lambda part, stop: asyncio.create_task(run(part, stop))
