"""The one loop that every worker's engine runs in: plan, take the device, step, apply.

A worker brings a `Scheduler`, which decides and is pure, and an `Engine`, which runs. The loop owns the rest:
admission, re-planning after every step and arrival, the device lease, cancelling within one step, learning what steps
cost, and the way back to the callers. It runs in a thread of its own; the lock is held for decisions, never while a
step runs.
"""

import asyncio
import logging
import math
import os
import signal
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from headway.cost import Cost, Foreign, LearnedScale, Load, ahead_ms, solo_ms
from headway.deadline import Clock
from headway.errors import Draining, Expired, Failed, HeadwayError
from headway.planning import Choice, Job, QueuePlan, Setting, admit, plan_queue, reason_of
from headway.ticket import Event, Finished, Ticket
from headway.v1 import common_pb2

log = logging.getLogger(__name__)

_DEMAND_BUCKETS = 16
_IDLE_WAIT_S = 0.05
_DECLARE_EVERY_S = 0.02


class Work(Protocol):
    """A worker's noun (`Sequence`, `Sample`, `Frame`): whatever it is, it carries a ticket."""

    @property
    def ticket(self) -> Ticket: ...


W = TypeVar("W", bound=Work)


@dataclass(frozen=True, slots=True)
class Batch(Generic[W]):
    """One step: what runs together, and what that should cost."""

    stage: str
    """Name of the stage for `Served` and the trace, e.g. "prefill"."""
    works: tuple[W, ...]
    items: int
    """Sequences, images, or 1 for a frame."""
    predicted: Cost


class Scheduler(Protocol[W]):
    """Decides; pure but for reading the works it is given."""

    def setting(self, now_s: float, foreign: Foreign, scale: Cost) -> Setting:
        """What the planner must know: step costs as calibrated, `scale`, batch limit, quantiles."""

    def job(self, work: W, now_s: float) -> Job:
        """The rungs that `work` may still take from now, best first, and what is left to do at each, as calibrated."""

    def next_batch(self, works: Sequence[W], now_s: float, scale: Cost) -> "Batch[W] | None":
        """The next step over admitted works, which come in the planner's order; None when none is ready."""


class Engine(Protocol[W]):
    """Runs steps."""

    def run(self, batch: Batch[W]) -> Any:
        """Runs one step on the device; blocks. Called without the lock, so it must not change what `job` reads."""

    def apply(self, batch: Batch[W], result: Any, now_s: float) -> list[tuple[Ticket, Event]]:
        """Takes a step's result into the works and says what to send; quick.

        Ends a work with `Finished` or an error.
        """

    def release(self, work: W) -> None:
        """Frees what `work` holds (slots, blocks). Called once for every work that was admitted."""


class Lease(Protocol):
    """The device, for one step."""

    @property
    def wait_s(self) -> float: ...

    @property
    def granted(self) -> bool:
        """False when no arbiter answered, and the step runs all the same."""


class Device(Protocol):
    """Grants the device to one step at a time; see headway.device."""

    def lease(self, *, latest_start_s: float, label: str) -> AbstractContextManager[Lease]: ...

    def declare(self, demand: Sequence[tuple[float, float]]) -> None: ...

    def others(self) -> tuple[tuple[float, float], ...]: ...


class Observer(Protocol):
    """Is told what happened, for metrics; see headway.worker."""

    def stepped(self, batch: Batch[Any], actual_ms: float, queued: int, lease: Lease) -> None: ...

    def finished(self, ticket: Ticket, now_s: float) -> None: ...


class EngineLoop(Generic[W]):
    """Runs an engine in a thread. `submit` and what it yields belong to the asyncio side."""

    def __init__(
        self, scheduler: Scheduler[W], engine: Engine[W], *, clock: Clock, device: Device, observer: Observer, name: str
    ) -> None:
        self._scheduler, self._engine = scheduler, engine
        self._clock, self._device, self._observer = clock, device, observer
        self._works: dict[int, W] = {}
        self._scale = LearnedScale()
        self._changed = threading.Condition()
        self._declared_s = -math.inf
        self._step_ended_s: float | None = None  # None when the engine was idle since
        self._rested_s = clock()
        """Up to when the scale has learned or forgotten."""
        self._stopping = False
        self._draining = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._main, name=f"{name}-engine", daemon=True)
        self._next_change = asyncio.Event()

    # --- the asyncio side

    def start(self) -> None:
        """Starts the thread; call it from the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Ends the loop after its current step; what is still admitted fails as `Draining`."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        await asyncio.to_thread(self._thread.join)

    async def drain(self) -> int:
        """Takes nothing new and waits until all that is admitted is done. Returns how many that were."""
        with self._changed:
            self._draining = True
            pending = list(self._works.values())
        while True:
            changed = self.changes()
            if all(work.ticket.done for work in pending):
                return len(pending)
            await changed.wait()

    def changes(self) -> asyncio.Event:
        """An event that is set at the next change of the state."""
        return self._next_change

    def _tell_watchers(self) -> None:
        changed, self._next_change = self._next_change, asyncio.Event()
        changed.set()

    @asynccontextmanager
    async def submit(self, work: W) -> AsyncIterator[Ticket]:
        """Admits `work` and holds it while the caller reads `ticket.events`; leaving early cancels it.

        Raises a `Refused` when it is not admitted; nothing is left behind then.
        """
        self._admit(work)
        try:
            yield work.ticket
        finally:
            with self._changed:
                work.ticket.cancelled = True
                self._changed.notify_all()

    def _admit(self, work: W) -> None:
        ticket = work.ticket
        with self._changed:
            if self._draining or self._stopping:
                raise Draining("the worker drains and takes nothing new", retry_after_s=1.0)
            now_s = self._clock()
            ticket.budget.check(now_s)
            if not self._works:
                self._scale.rest(now_s - self._rested_s)
                self._rested_s = now_s
            scale = self._scale.value
            setting = self._scheduler.setting(now_s, self._device.others(), scale)
            job = self._scheduler.job(work, now_s)
            plan = admit(self._jobs(now_s), job, setting, reserve_ms=ticket.budget.reserve_s * 1000)
            self._promise(ticket, plan[job.key], setting)
            self._works[ticket.key] = work
            self._follow(plan)
            self._declare(plan, setting)
            self._changed.notify_all()
        self._tell_watchers()

    def _promise(self, ticket: Ticket, choice: Choice, setting: Setting) -> None:
        wish = ticket.wish
        ticket.admitted_s, ticket.predicted = setting.now_s, choice.finish + Cost(setting.overhead_ms)
        ticket.plan = common_pb2.Plan(
            rung=choice.option.rung.to_proto(),
            reason=reason_of(choice.job, choice.level, setting, exact=wish.exact, floored=wish.floored),
            steps=max(1, choice.option.load.steps_left),
            budget_ms=ticket.budget.total_s * 1000,
            predicted_p50_ms=ticket.predicted.quantile_ms(0.5),
            predicted_p99_ms=ticket.predicted.quantile_ms(0.99),
        )

    # --- shared, under the lock

    def _jobs(self, now_s: float) -> list[Job]:
        works = [work for work in self._works.values() if not work.ticket.cancelled]
        return [self._scheduler.job(work, now_s) for work in works]

    def _follow(self, plan: QueuePlan) -> None:
        for key, choice in plan.items():
            if key in self._works:
                self._works[key].ticket.choice = choice

    def _declare(self, plan: QueuePlan, setting: Setting) -> None:
        """Tells the device's other workers what is to come here and by when."""
        rows, before_ms = list[tuple[float, float]](), 0.0
        for choice in plan.values():
            own_ms = choice.finish.mean_ms - ahead_ms(choice.job.due_s, setting.foreign)
            rows.append((choice.job.due_s, max(0.0, own_ms - before_ms)))
            before_ms = max(before_ms, own_ms)
        head, tail = rows[: _DEMAND_BUCKETS - 1], rows[_DEMAND_BUCKETS - 1 :]
        self._device.declare([*head, (tail[0][0], sum(work_ms for _, work_ms in tail))] if tail else head)
        self._declared_s = setting.now_s

    # --- the engine's thread

    def _main(self) -> None:
        try:
            self._run()
        except BaseException:
            # A fault in a decision: without its loop the process is no worker any more, so it ends and can be replaced.
            log.critical("the engine loop failed; the worker ends", exc_info=True)
            with self._changed:
                self._stopping = True
                events = self._end_all(Failed("the worker's engine loop failed"))
            self._send(events)
            os.kill(os.getpid(), signal.SIGTERM)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._works and not self._stopping:
                    self._step_ended_s = None
                    self._changed.wait()
                if self._stopping:
                    events = self._end_all(Draining("the worker stopped", retry_after_s=1.0))
                    self._send(events)
                    return
                admitted = len(self._works)
                events, batch, latest_start_s = self._decide()
                dropped = admitted - len(self._works)
                if batch is None and not dropped:
                    self._step_ended_s = None
                    self._changed.wait(_IDLE_WAIT_S)
            if dropped:
                self._send(events)
            if batch is not None:
                self._step(batch, latest_start_s)

    def _decide(self) -> tuple[list[tuple[Ticket, Event]], Batch[W] | None, float]:
        """Plans anew; returns what to send, the next step, and the latest time at which it may begin."""
        now_s = self._clock()
        events = self._drop_gone(now_s)
        scale = self._scale.value
        setting = self._scheduler.setting(now_s, self._device.others(), scale)
        plan = plan_queue(self._jobs(now_s), setting)
        self._follow(plan)
        if now_s - self._declared_s >= _DECLARE_EVERY_S:
            self._declare(plan, setting)
        works = [self._works[key] for key in plan]
        batch = self._scheduler.next_batch(works, now_s, scale) if works else None
        return events, batch, math.inf if batch is None else _latest_start_s(batch, setting)

    def _drop_gone(self, now_s: float) -> list[tuple[Ticket, Event]]:
        events: list[tuple[Ticket, Event]] = []
        for work in list(self._works.values()):
            if work.ticket.cancelled:
                self._remove(work)
            elif work.ticket.budget.remaining_s(now_s) <= 0:
                events.append((work.ticket, Expired("the deadline passed before the work was done")))
                self._remove(work)
        return events

    def _step(self, batch: Batch[W], latest_start_s: float) -> None:
        asked_s = self._clock()
        # Planning and applying between two steps is time that passes for everyone: it counts as the step's.
        between_s = 0.0 if self._step_ended_s is None else asked_s - self._step_ended_s
        self._step_ended_s = None
        try:
            with self._device.lease(latest_start_s=latest_start_s, label=batch.stage) as lease:
                start_s = self._clock()
                for work in batch.works:
                    work.ticket.started_s = work.ticket.started_s or start_s
                result = self._engine.run(batch)
                end_s = self._clock()
        except Exception as error:  # one bad batch must not end the worker
            log.exception("a %s step failed", batch.stage)
            failure = Failed(f"the engine failed in {batch.stage}: {type(error).__name__}")
            with self._changed:
                failed: list[tuple[Ticket, Event]] = [(work.ticket, failure) for work in batch.works]
                self._take_out(failed)
            self._send(failed)
            return
        with self._changed:
            events = self._engine.apply(batch, result, end_s)
            self._scale.observe(predicted_ms=batch.predicted.mean_ms, actual_ms=(end_s - start_s + between_s) * 1000)
            self._take_out(events)
            self._step_ended_s = self._rested_s = end_s
            queued = sum(1 for work in self._works.values() if work.ticket.started_s is None)
        self._observer.stepped(batch, (end_s - start_s) * 1000, queued, lease)
        self._send(events)

    def _take_out(self, events: Sequence[tuple[Ticket, Event]]) -> None:
        for ticket, event in events:
            if isinstance(event, Finished | HeadwayError) and ticket.key in self._works:
                if isinstance(event, Finished):
                    self._observer.finished(ticket, self._clock())
                self._remove(self._works[ticket.key])

    def _end_all(self, error: HeadwayError) -> list[tuple[Ticket, Event]]:
        events: list[tuple[Ticket, Event]] = [(work.ticket, error) for work in self._works.values()]
        for work in list(self._works.values()):
            self._remove(work)
        return events

    def _remove(self, work: W) -> None:
        work.ticket.done = True
        del self._works[work.ticket.key]
        self._engine.release(work)
        if not self._works:
            self._device.declare(())

    def _send(self, events: Sequence[tuple[Ticket, Event]]) -> None:
        """Hands events to the callers' queues, all in one wake-up of the event loop."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, events)

    def _deliver(self, events: Sequence[tuple[Ticket, Event]]) -> None:
        for ticket, event in events:
            ticket.events.put_nowait(event)
        self._tell_watchers()

    # --- for Watch

    def snapshot(self) -> "Snapshot":
        """What is admitted and what steps cost now."""
        with self._changed:
            now_s = self._clock()
            setting = self._scheduler.setting(now_s, (), self._scale.value)
            choices = [work.ticket.choice for work in self._works.values() if work.ticket.choice is not None]
            choices.sort(key=lambda choice: choice.job.due_s)
            return Snapshot(now_s, replace(setting, foreign=()), tuple(choices), len(self._works), self._draining)


def _latest_start_s(batch: Batch[Any], setting: Setting) -> float:
    """The latest time at which a step may begin for its most urgent work to be done when due."""
    loads: list[Load] = [work.ticket.choice.option.load for work in batch.works if work.ticket.choice is not None]
    factor = setting.scale.mean_ms / 1000
    starts_s = [load.due_s - solo_ms(load, setting.curve, setting.max_batch) * factor for load in loads]
    return min(starts_s, default=setting.now_s)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The loop's state at one time."""

    now_s: float
    setting: Setting
    choices: tuple[Choice, ...]
    """By deadline."""
    in_flight: int
    draining: bool
