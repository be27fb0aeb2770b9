"""What `headway.engine_loop` does with a scheduler and a policy, without its thread, on virtual time.

Left out beside what `text` says: the time that planning takes itself, and what a worker says of itself to people.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.simulation.clock import Clock
from benchmarks.simulation.device import Device
from benchmarks.simulation.host import Host
from benchmarks.simulation.models import ASSET, Model
from headway.cost import ONE, Cost, StepCurve
from headway.deadline import Budget
from headway.errors import Expired, HeadwayError, Refused
from headway.host_speed import HostSpeed
from headway.jobs import demand_of, jobs_of
from headway.planning import Job, QueuePlan, Setting, hopeless
from headway.policy import Policy
from headway.quality import Rung, read_wish
from headway.running_step import RunningStep, begin
from headway.ticket import Ticket
from headway.v1 import common_pb2
from services.router.view import Asset, Description, Report

RESERVE_S = 0.005
"""What a worker keeps back to return an answer: `return_reserve_ms`."""
_PULSE_PAUSE_S = 0.25


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it comes to a worker."""

    key: int
    """Of the request: higher for those that came later."""
    level: common_pb2.ServiceLevel
    items: int
    deadline_s: float
    over: Callable[[Rung | HeadwayError], None]
    """Is told once how an admitted call ended, when its answer leaves the worker."""


@dataclass(slots=True, eq=False)
class _Admitted:
    call: Call
    work: Any

    @property
    def ticket(self) -> Ticket:
        ticket: Ticket = self.work.ticket
        return ticket


class VirtualWorker:
    """One worker. Deterministic for a given host."""

    def __init__(
        self,
        name: str,
        model: Model,
        policy: Policy,
        *,
        clock: Clock,
        device: Device,
        host: Host,
        changed: Callable[["VirtualWorker"], None],
    ) -> None:
        """`changed` is called when what it would report has changed."""
        self.name, self.model, self._policy = name, model, policy
        self._clock, self._device, self._host, self._changed = clock, device, host, changed
        self._scheduler = model.scheduler()
        self._speed = HostSpeed()
        self._admitted: dict[int, _Admitted] = {}
        self._running: RunningStep | None = None
        """Until the next one is decided."""
        self._stepping = False
        self._asked_due_s: float | None = None
        """The earliest deadline at which the device was asked for; None while it is not."""
        self._pulsed_s = -math.inf
        self._curves = (ONE, model.curves())
        self.busy_ms = 0.0
        """Device time used so far."""

    @property
    def description(self) -> Description:
        """As `Describe` says it."""
        assets = (Asset(ASSET, ASSET, self.model.ladder),)
        return Description(self.name, self.model.kind, self._device.device_id, "virtual", assets)

    def report(self) -> Report:
        """As `Watch` says it now, and `services.router.view` reads it."""
        choices = [each.ticket.choice for each in self._admitted.values()]
        scale = self._speed.scale
        loads = [self.model.reported(choice.option.load) for choice in choices if choice is not None]
        if scale != ONE:
            loads = [replace(load, setup=load.setup.scaled(scale)) for load in loads]
        loads.sort(key=lambda load: load.due_s)
        return Report(
            received_s=self._clock.now_s,
            loads=tuple(loads),
            curves=self._scaled_curves(scale),
            max_batch=self.model.max_batch,
            prefill_token_ms=getattr(self.model, "prefill_token_ms", 0.0),
            in_flight=len(loads),
            backlog_ms=0.0,
            draining=False,
            kept_kv_ms=getattr(self.model, "kept_kv_ms", None),
        )

    def _scaled_curves(self, scale: Cost) -> dict[tuple[str, str], StepCurve]:
        if self._curves[0] != scale:
            self._curves = (scale, {key: curve.scaled(scale) for key, curve in self.model.curves().items()})
        return dict(self._curves[1])

    # --- admission, as `EngineLoop._asked`

    def admit(self, call: Call) -> None:
        """Admits a call now. Raises a `Refused` that leaves nothing behind."""
        now_s = self._clock.now_s
        wish = read_wish(call.level, self.model.ladder, self.model.kind)
        budget = Budget(now_s, call.deadline_s, RESERVE_S)
        budget.check(now_s)
        target_s = budget.due_s if wish.target_s is None else min(budget.due_s, now_s + wish.target_s)
        work = self.model.work(Ticket(budget, wish, target_s, key=call.key), call.items)
        plan = self._asked(work, now_s)
        self._admitted[call.key] = _Admitted(call, work)
        self._follow(plan)
        idle = not self._stepping and self._asked_due_s is None
        if idle or (self._asked_due_s is not None and budget.due_s < self._asked_due_s):
            self._ask()
        self._changed(self)

    def _asked(self, work: Any, now_s: float) -> QueuePlan:
        planned = self._planned_jobs()
        setting = self._setting(now_s, others=len(planned))
        if self._running is not None:
            busy_ms = max(setting.busy_ms, self._running.busy_ms(now_s))
            planned, setting = self._running.jobs(planned), replace(setting, busy_ms=busy_ms)
        job = self._scheduler.job(work, now_s)
        try:
            self._policy.check(planned, job, setting, reserve_ms=RESERVE_S * 1000)
            plan = self._policy.admit(planned, job, setting, reserve_ms=RESERVE_S * 1000)
        except Refused:
            self._doubt(now_s)
            raise
        self._device.declare(self.name, demand_of(jobs_of(plan), setting))
        return plan

    def _planned_jobs(self) -> list[Job]:
        choices = [each.ticket.choice for each in self._admitted.values()]
        return [choice.job for choice in choices if choice is not None]

    def _setting(self, now_s: float, *, others: int) -> Setting:
        foreign = self._device.others(self.name)
        setting = replace(self._scheduler.setting(now_s, foreign, self._speed.scale), shared=bool(foreign))
        until_s = self._device.busy_until_s(self.name)
        if until_s is not None:
            setting = replace(setting, busy_ms=max(0.0, until_s - now_s) * 1000)
        return replace(setting, stall_ms=self._speed.stall_ms) if others or setting.foreign else setting

    def _doubt(self, now_s: float) -> None:
        """Refused while it was idle: is the host still as slow as it was?"""
        if not self._admitted and now_s - self._pulsed_s > _PULSE_PAUSE_S:
            self._pulsed_s = now_s
            self._speed.pulsed(self._host.slowness(now_s))
            self._changed(self)

    def _follow(self, plan: QueuePlan) -> None:
        for key, choice in plan.items():
            if key in self._admitted:
                self._admitted[key].ticket.choice = choice

    # --- steps, as `EngineLoop._run`, `_decide` and `_step`

    def _ask(self) -> None:
        """Asks for the device while there is something to do; what runs there is decided when it is granted."""
        now_s = self._clock.now_s
        self._drop_expired(now_s)
        if not self._admitted:
            self._asked_due_s = None
            self._device.rest(self.name)
            return
        self._asked_due_s = min(each.ticket.budget.due_s for each in self._admitted.values())
        kept_s = self._setting(now_s, others=len(self._admitted) - 1).kept_s
        self._device.lease(self.name, self._asked_due_s - kept_s, self._decide)

    def _decide(self) -> None:
        """Plans anew, and begins a step when there is one to run."""
        now_s = self._clock.now_s
        self._drop_expired(now_s)
        jobs = [self._scheduler.job(each.work, now_s) for each in self._admitted.values()]
        setting = self._setting(now_s, others=len(jobs) - 1)
        plan = self._policy.plan(jobs, setting)
        for key in hopeless(plan, setting):
            self._answer(self._admitted[key].ticket, Expired("the deadline cannot be met any more"), now_s)
            del plan[key]
        self._follow(plan)
        works = [self._admitted[key].work for key in self._policy.ready(plan, setting)]
        batch = self._scheduler.next_batch(works, now_s, self._speed.scale) if works else None
        self._running = None
        if batch is None:
            self._ask()
        else:
            self._begin(batch, plan, setting)
        self._changed(self)

    def _begin(self, batch: Any, plan: QueuePlan, setting: Setting) -> None:
        now_s = self._clock.now_s
        self._stepping, self._asked_due_s = True, None
        self._running = begin(batch, now_s, self._speed.scale.mean_ms)
        demand = demand_of(self._running.jobs(jobs_of(plan)), setting)
        self._device.declare(self.name, demand, self._running.end_s)
        taken_ms = self._host.step_ms(batch.predicted.mean_ms, now_s)
        self.busy_ms += taken_ms
        self._clock.at(now_s + taken_ms / 1000, self._end, batch, taken_ms)

    def _end(self, batch: Any, taken_ms: float) -> None:
        now_s = self._clock.now_s
        self._speed.stepped(batch.predicted, taken_ms)
        for done in self.model.apply(batch):
            self._answer(done.work.ticket, done.rung, now_s)
        assert self._running is not None
        self._running.end_s, self._stepping = now_s, False
        self._ask()
        self._changed(self)

    def _drop_expired(self, now_s: float) -> None:
        gone = [each.ticket for each in self._admitted.values() if each.ticket.budget.remaining_s(now_s) <= 0]
        for ticket in gone:
            self._answer(ticket, Expired("the deadline passed before the work was done"), now_s)

    def _answer(self, ticket: Ticket, what: Rung | HeadwayError, now_s: float) -> None:
        budget = ticket.budget
        self._policy.ended((now_s - budget.arrival_s) / max(ticket.target_s - budget.arrival_s, 1e-6))
        self._clock.at(now_s + self._scheduler.setting(now_s, (), ONE).overhead_ms / 1000,
                       self._admitted.pop(ticket.key).call.over, what)  # fmt: skip
