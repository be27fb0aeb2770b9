"""The one loop that every worker's engine runs in: plan, take the device, step, apply.

A worker brings a `Scheduler`, which decides and is pure, and an `Engine`, which runs. The loop owns the rest:
admission, re-planning after every step and arrival, the device lease, cancelling within one step, learning what steps
cost, and the way back to the callers. It runs in a thread of its own; the lock is held for decisions, never while a
step runs, and refusing takes no lock at all.
"""

import asyncio
import logging
import math
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Generic, TypeVar

from headway.deadline import Clock
from headway.engine import Batch, Device, Engine, Lease, Observer, Pulse, Scheduler, Snapshot, W
from headway.errors import Draining, Expired, Failed, HeadwayError, Refused
from headway.host_speed import HostSpeed
from headway.jobs import demand_of, jobs_of
from headway.planning import Job, QueuePlan, Setting, hopeless
from headway.policy import Planned, Policy
from headway.promises import Promises, share_of_target
from headway.running_step import RunningStep, begin
from headway.ticket import Event, Finished, Ticket

log = logging.getLogger(__name__)

A = TypeVar("A")

_LAST = (Finished, HeadwayError)
"""A request's last event is one of these."""

_IDLE_WAIT_S = 0.05
_FIRST_PULSE_S, _LAST_PULSE_S = 0.25, 30.0
"""Pauses between two pulses of a worker at rest: from the first, doubled while it is steady, up to the last."""
_PULSE_PATIENCE_S = 60.0


class EngineLoop(Generic[W]):
    """Runs an engine in a thread. `submit` and what it yields belong to the asyncio side."""

    def __init__(
        self,
        scheduler: Scheduler[W],
        engine: Engine[W],
        *,
        clock: Clock,
        device: Device,
        observer: Observer,
        name: str,
        pulse: Pulse | None = None,
        policy: Policy | None = None,
    ) -> None:
        """`policy` is used under the loop's lock alone; None: Headway's own."""
        self.policy = policy or Planned()
        self._scheduler, self._engine = scheduler, engine
        self._clock, self._device, self._observer = clock, device, observer
        self._works: dict[int, W] = {}
        self._host = HostSpeed()
        self._promises = Promises()
        self._changed = threading.Condition()
        self._step_ended_s: float | None = None  # None when the engine was idle since
        self._running: RunningStep | None = None
        self._pulse, self._pulse_pause_s = pulse, _FIRST_PULSE_S
        self._pulsed_s = -math.inf
        self._doubted = False
        """Something was refused while nothing was admitted: is the host still as slow?"""
        self._woken = False
        """Something changed since the last decision."""
        self._stopping = False
        self._draining = False
        self._series = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._name = name
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
        while self._thread.is_alive():
            self._device.hurry(self._clock())  # on a busy device a pulse may wait for a minute
            await asyncio.to_thread(self._thread.join, _IDLE_WAIT_S)

    async def drain(self) -> int:
        """Takes nothing new and waits until all that is admitted is done. Returns how many that were."""
        with self._changed:
            self._draining = True
            pending = list(self._works.values())
        while True:
            changed = self.changes()
            if all(work.ticket.done for work in pending) and not self._series:
                return len(pending)
            await changed.wait()

    @contextmanager
    def series(self) -> Iterator[None]:
        """Holds an answer that is made of several works, one after another: `drain` waits for its end.

        Its later works have tickets that follow (`Ticket.follows`). Raises `Draining`. Belongs to the asyncio side.
        """
        if self._draining or self._stopping:
            raise _draining()
        self._series += 1
        try:
            yield
        finally:
            self._series -= 1
            self._tell_watchers()

    def wake(self) -> None:
        """Something that no request brought makes work ready: the next step is decided at once. From any thread."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

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
        if not ticket.counted:
            self._asked(work, self.policy.check)  # without the lock: a no need not wait for the engine's plan
        with self._changed:
            plan, setting = self._asked(work, self.policy.join if ticket.counted else self.policy.admit)
            choice = plan[ticket.key]
            self._promises.make(ticket, choice, setting, self.policy.reason(choice, setting, ticket.wish))
            self._works[ticket.key] = work
            self._follow(plan)
            if not ticket.counted:
                self._device.declare(demand_of(jobs_of(plan), setting))
            self._device.hurry(ticket.budget.due_s - setting.kept_s)
            self._changed.notify_all()
        self._tell_watchers()

    def _asked(self, work: W, ask: Callable[..., A]) -> tuple[A, Setting]:
        """What `ask` (a policy's `check` or `admit`) says to the work, beside what is planned, behind what runs."""
        ticket, now_s = work.ticket, self._clock()
        if self._stopping or (self._draining and not ticket.follows):
            raise _draining()
        ticket.budget.check(now_s)
        planned, job, running = self._planned_jobs(), self._scheduler.job(work, now_s), self._running
        setting = self._setting(now_s, others=len(planned))
        if ticket.follows or ticket.budget.promised:
            setting = replace(setting, failover_share=0.0)
        if running is not None:
            busy_ms = max(running.busy_ms(now_s), setting.busy_ms)  # one of them: a device runs one step at a time
            planned, setting = running.jobs(planned), replace(setting, busy_ms=busy_ms)
        try:
            return ask(planned, job, setting, reserve_ms=ticket.budget.reserve_s * 1000), setting
        except Refused:
            self._doubt(now_s)
            raise

    def _setting(self, now_s: float, *, others: int) -> Setting:
        """What is planned with; alone on the device, a caller may cut its deadline as fine as it likes."""
        foreign = self._device.others()
        setting = self._scheduler.setting(now_s, foreign, self._host.scale)
        stall_ms = self._host.stall_ms if others or setting.beside else setting.stall_ms
        return replace(setting, busy_ms=self._foreign_busy_ms(now_s), stall_ms=stall_ms, shared=bool(foreign))

    def _foreign_busy_ms(self, now_s: float) -> float:
        """What is left of the step that another worker runs on the device; one that is overdue may end any moment."""
        until_s = self._device.busy_until_s
        return 0.0 if until_s is None else max(0.0, until_s - now_s) * 1000

    def _doubt(self, now_s: float) -> None:
        """After a refusal with nothing admitted: is the host still as slow as it was?"""
        if not self._works and self._pulse is not None and now_s - self._pulsed_s > _FIRST_PULSE_S:
            with self._changed:
                self._doubted, self._pulse_pause_s = True, _FIRST_PULSE_S
                self._changed.notify_all()

    # --- shared, under the lock

    def _jobs(self, now_s: float) -> list[Job]:
        works = [work for work in self._works.values() if not work.ticket.cancelled]
        return [self._scheduler.job(work, now_s) for work in works]

    def _planned_jobs(self) -> list[Job]:
        """Everything admitted, as planned last: at most a step ago. Needs no lock: a list of a dict is one act."""
        tickets = [work.ticket for work in list(self._works.values())]
        return [ticket.choice.job for ticket in tickets if ticket.choice is not None and not ticket.cancelled]

    def _follow(self, plan: QueuePlan) -> None:
        for key, choice in plan.items():
            if key in self._works:
                self._works[key].ticket.choice = choice

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
            if not self._await_work():
                self._take_pulse()
                continue
            with self._changed:
                if self._stopping:
                    self._device.rest()
                    self._send(self._end_all(Draining("the worker stopped", retry_after_s=1.0)))
                    return
                admitted = len(self._works)
                events, due_s = self._ask()
            if due_s is None or len(self._works) < admitted:
                self._send(events)
            if due_s is not None and not self._turn(due_s):
                with self._changed:
                    self._device.rest()
                    self._step_ended_s = None
                    if not self._woken:
                        self._changed.wait(_IDLE_WAIT_S)

    def _ask(self) -> tuple[list[tuple[Ticket, Event]], float | None]:
        """What to send, and by when a step must begin; None when nothing is left to do."""
        now_s = self._clock()
        events = self._drop_gone(now_s)
        if not self._works:
            return events, None
        due_s = min(work.ticket.budget.due_s for work in self._works.values())
        return events, due_s - self._setting(now_s, others=len(self._works) - 1).kept_s

    def _turn(self, due_s: float) -> bool:
        """One step, decided when the device is granted, as more urgent work may have come. False when none is ready.

        The lease is kept, and the next step is planned under it: see `headway.device`.
        """
        asked_s = self._clock()
        with self._device.lease(due_s=due_s, label=self._name, keep=True) as lease:
            granted_s = self._clock()
            with self._changed:
                events, batch = self._decide()
            if events:
                self._send(events)
            if batch is None:
                return False
            # Planning and applying between two steps is time that passes for everyone: it counts as the step's.
            between_s = 0.0
            if self._step_ended_s is not None:
                between_s = asked_s - self._step_ended_s + self._clock() - granted_s
            self._step(batch, between_s, lease)
        return True

    def _await_work(self) -> bool:
        """Waits until there is something to do; False when it is time for a pulse."""
        with self._changed:
            if self._works or self._stopping:
                return True
            self._device.rest()
            self._step_ended_s = None
            waits = math.inf if self._pulse is None else math.ceil(self._pulse_pause_s / _IDLE_WAIT_S)
            while not self._changed.wait_for(lambda: self._works or self._stopping or self._doubted, _IDLE_WAIT_S):
                self._device.others()  # what is not read piles up, and is old when it is asked for
                waits -= 1
                if waits <= 0:
                    return False
            return not self._doubted

    def _take_pulse(self) -> None:
        """Runs the pulse's step once, unless work came; rarely when it is as expected, soon again when it is not."""
        assert self._pulse is not None
        with self._device.lease(due_s=self._clock() + _PULSE_PATIENCE_S, label="pulse"):
            with self._changed:
                if self._works or self._stopping:
                    return
                pulse_ms = self._pulse.predicted.scaled(self._host.scale).mean_ms
                self._device.declare((), step_end_s=self._clock() + 2 * pulse_ms / 1000)
            self._pulse.run()  # wakes what has slept; costs were measured awake, and steps under load find it so
            start_s = self._clock()
            self._pulse.run()
            ratio = (self._clock() - start_s) * 1000 / self._pulse.predicted.mean_ms
        with self._changed:
            steady = self._host.pulsed(ratio)
            self._pulse_pause_s = min(_LAST_PULSE_S, self._pulse_pause_s * 2) if steady else _FIRST_PULSE_S
            self._doubted, self._pulsed_s = False, self._clock()
        self._send(())  # those who watch are told what steps cost now

    def _decide(self) -> tuple[list[tuple[Ticket, Event]], Batch[W] | None]:
        """Plans anew; returns what to send, and the next step, which begins now."""
        now_s, self._woken = self._clock(), False
        events = self._drop_gone(now_s)
        jobs, scale = self._jobs(now_s), self._host.scale
        setting = self._setting(now_s, others=len(jobs) - 1)
        plan = self.policy.plan(jobs, setting)
        for key in hopeless(plan, setting):
            events.append(self._expire(self._works[key], "the deadline cannot be met any more", now_s))
            del plan[key]
        self._follow(plan)
        works = [self._works[key] for key in self.policy.ready(plan, setting)]
        batch = self._scheduler.next_batch(works, now_s, scale) if works else None
        self._running = None if batch is None else begin(batch, self._clock(), scale.mean_ms)
        self._tell_device(plan, setting)
        return events, batch

    def _tell_device(self, plan: QueuePlan, setting: Setting) -> None:
        """Tells the device's other workers what is to come here by when, and when the step should end that begins."""
        jobs, running = jobs_of(plan), self._running
        if running is None:
            self._device.declare(demand_of(jobs, setting))
        else:
            self._device.declare(demand_of(running.jobs(jobs), setting), step_end_s=running.end_s)

    def _drop_gone(self, now_s: float) -> list[tuple[Ticket, Event]]:
        events: list[tuple[Ticket, Event]] = []
        for work in list(self._works.values()):
            if work.ticket.cancelled:
                self._remove(work)
            elif work.ticket.budget.remaining_s(now_s) <= 0:
                events.append(self._expire(work, "the deadline passed before the work was done", now_s))
        return events

    def _expire(self, work: W, why: str, now_s: float) -> tuple[Ticket, Event]:
        self.policy.ended(share_of_target(work.ticket, now_s))
        self._remove(work)
        return work.ticket, Expired(why)

    def _step(self, batch: Batch[W], between_s: float, lease: Lease) -> None:
        start_s = self._clock()
        for work in batch.works:
            work.ticket.started_s = work.ticket.started_s or start_s
        try:
            result = self._engine.run(batch)
        except Exception as error:  # one bad batch must not end the worker
            log.exception("a %s step failed", batch.stage)
            self._fail(batch, Failed(f"the engine failed in {batch.stage}: {type(error).__name__}"))
            return
        end_s = self._clock()
        with self._changed:
            if self._running is not None:
                self._running.end_s = end_s
            events = self._engine.apply(batch, result, end_s)
            self._host.stepped(batch.predicted, (end_s - start_s + between_s) * 1000)
            self._take_out(events)
            self._step_ended_s = end_s
            queued = sum(1 for work in self._works.values() if work.ticket.started_s is None)
        self._observer.stepped(batch, (end_s - start_s) * 1000, queued, lease)
        self._send(events)

    def _fail(self, batch: Batch[W], failure: Failed) -> None:
        failed: list[tuple[Ticket, Event]] = [(work.ticket, failure) for work in batch.works]
        with self._changed:
            self._running = self._step_ended_s = None
            self._take_out(failed)
        self._send(failed)

    def _take_out(self, events: Sequence[tuple[Ticket, Event]]) -> None:
        for ticket, event in events:
            if isinstance(event, _LAST) and ticket.key in self._works:
                if isinstance(event, Finished):
                    now_s = self._clock()
                    self._promises.kept(ticket, now_s)
                    self.policy.ended(share_of_target(ticket, now_s))
                    self._observer.finished(ticket, now_s)
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
            setting = self._scheduler.setting(now_s, (), self._host.scale)
            foreign = self._device.others()
            busy_ms = self._foreign_busy_ms(now_s)  # what is admitted here has the step in it that runs here
            choices = [work.ticket.choice for work in self._works.values() if work.ticket.choice is not None]
            choices.sort(key=lambda choice: choice.job.due_s)
            return Snapshot(
                now_s,
                replace(setting, later=(), busy_ms=busy_ms),
                foreign,
                tuple(choices),
                len(self._works),
                self._draining,
            )


def _draining() -> Draining:
    return Draining("the worker drains and takes nothing new", retry_after_s=1.0)
