"""An image worker on a virtual clock: the real scheduler, planner and policies, with costs that are known exactly."""

import random
from dataclasses import replace

from headway.cost import ONE, ZERO, Cost, StepCurve
from headway.deadline import Budget
from headway.errors import Refused
from headway.planning import Setting
from headway.policy import Planned, Policy
from headway.quality import Rung, Wish
from headway.running_step import RunningStep, begin
from headway.ticket import Ticket
from headway.v1 import common_pb2
from services.dit_worker.encode import Format
from services.dit_worker.model.guidance import UNGUIDED
from services.dit_worker.sample_group import ImagesSpec, SampleGroup
from services.dit_worker.scheduler import DitScheduler, ImageCosts

ITEM_MS, STEP_MS = 1.5, 2.0
RUNGS = tuple(Rung(str(steps), quality, nfe=steps, dfd=1.0) for steps, quality in ((4, 1.0), (2, 0.8), (1, 0.5)))
CURVE = StepCurve(tuple((size, Cost(STEP_MS + ITEM_MS * size)) for size in (1, 16, 64)))
FREE = StepCurve(((1, ZERO),))


class VirtualWorker:
    """What `headway.engine_loop` does with a scheduler and a policy, on a clock that only steps move."""

    def __init__(self, max_batch: int, policy: Policy | None = None) -> None:
        costs = ImageCosts(CURVE, FREE, {Format.RAW: FREE})
        self.scheduler = DitScheduler(costs, max_batch, rung_quantile=0.9, admission_quantile=0.999, overhead_ms=1.0)
        self.policy, self.running = policy or Planned(), None
        self.works: dict[int, SampleGroup] = {}
        self.slack_ms: list[float] = []
        self.refused = 0
        self.quality = 0.0

    running: RunningStep | None

    def setting(self, now_s: float) -> Setting:
        return self.scheduler.setting(now_s, (), ONE)

    def arrive(self, now_s: float, items: int, deadline_s: float) -> None:
        wish = Wish(common_pb2.PRIORITY_NORMAL, RUNGS, exact=False, floored=False, target_s=None)
        ticket = Ticket(Budget(now_s, now_s + deadline_s, 0.0), wish, now_s + deadline_s)
        work = SampleGroup(ticket, ImagesSpec((0,) * items, 1, UNGUIDED, Format.RAW, 90))
        jobs = [each.ticket.choice.job for each in self.works.values() if each.ticket.choice is not None]
        setting = self.setting(now_s)
        if self.running is not None:
            jobs, setting = self.running.jobs(jobs), replace(setting, busy_ms=self.running.busy_ms(now_s))
        job = self.scheduler.job(work, now_s)
        try:
            self.policy.check(jobs, job, setting, reserve_ms=0.0)
            plan = self.policy.admit(jobs, job, setting, reserve_ms=0.0)
        except Refused:
            self.refused += 1
            return
        self.works[ticket.key] = work
        for key, choice in plan.items():
            self.works[key].ticket.choice = choice

    def step(self, now_s: float, arrivals: list[tuple[float, int, float]]) -> float:
        """One step; those who arrive while it runs are admitted or refused then. Returns when it ended."""
        setting = self.setting(now_s)
        plan = self.policy.plan([self.scheduler.job(work, now_s) for work in self.works.values()], setting)
        for key, choice in plan.items():
            self.works[key].ticket.choice = choice
        batch = self.scheduler.next_batch([self.works[key] for key in plan], now_s, ONE)
        assert batch is not None
        self.running = begin(batch, now_s, 1.0)
        end_s = self.running.end_s
        while arrivals and arrivals[0][0] < end_s:
            self.arrive(*arrivals.pop(0))
        self.running = None
        for work, end in zip(batch.works, batch.ends, strict=True):
            work.begun, work.t, work.job = True, end, None
            work.ticket.steps_executed += 1
            if end == 0.0:
                self.slack_ms.append(work.ticket.budget.remaining_s(end_s) * 1000 - 1.0)
                self.quality += max(each.quality for each in RUNGS if (each.nfe or 0) <= work.ticket.steps_executed)
                del self.works[work.ticket.key]
        return end_s

    def serve(self, arrivals: list[tuple[float, int, float]]) -> None:
        now_s = 0.0
        while arrivals or self.works:
            if not self.works:
                now_s = max(now_s, arrivals[0][0])
                self.arrive(*arrivals.pop(0))
            else:
                now_s = self.step(now_s, arrivals)


def poisson(load: float, count: int, seed: int) -> list[tuple[float, int, float]]:
    """(time, images, seconds to the deadline), with load 1.0 as much as one step a request lets through."""
    draw, now_s, found = random.Random(seed), 0.0, []
    for _ in range(count):
        now_s += draw.expovariate(load * 1000 / (STEP_MS + ITEM_MS * 40))
        items = draw.choice((16, 32, 48, 64))
        solo_s = 4 * (STEP_MS + ITEM_MS * items) / 1000
        found.append((now_s, items, solo_s * draw.choice((1.5, 3.0, 6.0))))
    return found
