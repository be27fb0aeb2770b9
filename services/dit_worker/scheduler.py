"""What to run next. Pure: it reads works and times, and changes nothing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile

from headway.cost import ZERO, Cost, Foreign, Load, StepCurve
from headway.planning import Choice, Job, Option, Setting
from headway.quality import Rung
from services.dit_worker.encode import Format
from services.dit_worker.sample_group import Jump, SampleGroup
from services.dit_worker.sampler import next_time

STEPS, NOISE, ENCODE = "steps", "noise", "encode"


@dataclass(frozen=True, slots=True)
class ImageCosts:
    """What the parts of the work cost on this host, by number of images, before `LearnedScale`."""

    step: StepCurve
    noise: StepCurve
    encode: Mapping[Format, StepCurve]


@dataclass(frozen=True, slots=True)
class DitScheduler:
    """A `headway.engine.Scheduler`: every group that fits goes, whatever its class, its time or its plan."""

    costs: ImageCosts
    max_batch: int
    rung_quantile: float
    admission_quantile: float
    overhead_ms: float
    failover_share: float = 0.0

    def setting(self, now_s: float, foreign: Foreign, scale: Cost) -> Setting:
        return Setting(
            now_s,
            self.costs.step,
            self.max_batch,
            scale,
            foreign,
            rung_quantile=self.rung_quantile,
            admission_quantile=self.admission_quantile,
            overhead_ms=self.overhead_ms,
            failover_share=self.failover_share,
            commits=True,
        )

    def job(self, work: SampleGroup, now_s: float) -> Job:
        """The allowed rungs that still need a step: the remaining time is cut anew for each of them.

        It changes with the work's steps alone, and is kept with it until then: with many requests, making jobs anew
        for every plan would take longer than planning.
        """
        if work.job is None:
            work.job = self._job(work)
        return work.job

    def _job(self, work: SampleGroup) -> Job:
        ticket = work.ticket
        around = self._around(work)
        options = tuple(
            self._option(work, rung, rung.nfe - ticket.steps_executed, around)
            for rung in ticket.wish.allowed
            if rung.nfe is not None and rung.nfe > ticket.steps_executed
        )
        return Job(ticket.key, ticket.wish.priority, ticket.budget.due_s, ticket.target_s, options)

    def next_batch(self, works: Sequence[SampleGroup], now_s: float, scale: Cost) -> Jump | None:
        """The longest run from the front that fits, as `predict_finish` assumes; one that is larger goes alone.

        It is shorter where it would make a request late that a shorter one keeps in time.
        """
        if not works:
            return None
        room = takewhile(lambda total: total <= self.max_batch, accumulate(work.items for work in works))
        taken = self._kept_in_time(works[: max(1, len(list(room)))], now_s, scale)
        choices = tuple(planned(work) for work in taken)
        left = [choice.option.load.steps_left for choice in choices]
        items = sum(work.items for work in taken)
        predicted = self.costs.step.at(items)
        for work, steps_left in zip(taken, left, strict=True):
            encodes = steps_left == 1 or work.spec.previews
            predicted += self._noise(work) + (self.encode(work) if encodes else ZERO)
        ends = tuple(next_time(work.t, steps) for work, steps in zip(taken, left, strict=True))
        return Jump(STEPS, tuple(taken), items, predicted, scale.mean_ms, choices, ends)

    def encode(self, work: SampleGroup) -> Cost:
        """What encoding all of a group costs."""
        return self.costs.encode[work.spec.form].at(work.items)

    def previews(self, work: SampleGroup, steps: int) -> Cost:
        """What previews cost after every one of so many steps but the last."""
        return self.encode(work).times(steps - 1) if work.spec.previews and steps > 1 else ZERO

    def _option(self, work: SampleGroup, rung: Rung, steps: int, around: Cost) -> Option:
        setup = around + self.previews(work, steps) if work.spec.previews else around
        return Option(rung, Load(work.ticket.budget.due_s, work.items, steps, setup))

    def _kept_in_time(self, works: Sequence[SampleGroup], now_s: float, scale: Cost) -> Sequence[SampleGroup]:
        """The longest run in which every step that a late one waits for is as short as it needs."""
        most_ms = [self._longest_step_ms(work, now_s, scale) for work in works]
        items, longest_ms = 0, math.inf
        for count, (work, allowed_ms) in enumerate(zip(works, most_ms, strict=True)):
            items, longest_ms = items + work.items, min(longest_ms, allowed_ms)
            if count and longest_ms < math.inf and self._step_ms(items, scale) > longest_ms:
                return works[:count]
        return works

    def _longest_step_ms(self, work: SampleGroup, now_s: float, scale: Cost) -> float:
        """How long each step may take at most for a work that its plan says is late; infinite if nothing helps or need.

        What is planned is planned with full batches: alone, or with fewer, it may still be in time.
        """
        choice = planned(work)
        left_ms = (work.ticket.budget.due_s - now_s) * 1000 - self.overhead_ms
        if choice.finish.quantile_ms(self.admission_quantile) <= left_ms:
            return math.inf
        load = choice.option.load
        allowed_ms = (left_ms - load.setup.mean_ms * scale.mean_ms) / load.steps_left
        return allowed_ms if self._step_ms(work.items, scale) <= allowed_ms else math.inf

    def _step_ms(self, items: int, scale: Cost) -> float:
        return self.costs.step.at(items).mean_ms * scale.mean_ms

    def _noise(self, work: SampleGroup) -> Cost:
        return ZERO if work.begun else self.costs.noise.at(work.items)

    def _around(self, work: SampleGroup) -> Cost:
        """Device time beside the steps: noise before the first, encoding after the last."""
        return self._noise(work) + self.encode(work)


def planned(work: SampleGroup) -> Choice:
    """The plan that stands; the loop plans every work before it asks for a batch."""
    assert work.ticket.choice is not None
    return work.ticket.choice
