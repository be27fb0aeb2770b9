"""What to run next. Pure: it reads works and times, and changes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile

from headway.cost import Cost, Foreign, Load, StepCurve
from headway.planning import Choice, Job, Option, Setting
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
        )

    def job(self, work: SampleGroup, now_s: float) -> Job:
        """The allowed rungs that still need a step: the remaining time is cut anew for each of them."""
        ticket = work.ticket
        setup = self._around(work)
        options = tuple(
            Option(rung, Load(ticket.budget.due_s, work.items, rung.nfe - ticket.steps_executed, setup))
            for rung in ticket.wish.allowed
            if rung.nfe is not None and rung.nfe > ticket.steps_executed
        )
        return Job(ticket.key, ticket.wish.priority, ticket.budget.due_s, ticket.target_s, options)

    def next_batch(self, works: Sequence[SampleGroup], now_s: float, scale: Cost) -> Jump | None:
        """The longest run from the front that fits, as `predict_finish` assumes."""
        room = takewhile(lambda total: total <= self.max_batch, accumulate(work.items for work in works))
        taken = tuple(works[: len(list(room))])
        if not taken:
            return None
        choices = tuple(planned(work) for work in taken)
        left = [choice.option.load.steps_left for choice in choices]
        items = sum(work.items for work in taken)
        predicted = self.costs.step.at(items)
        for work, steps_left in zip(taken, left, strict=True):
            predicted += self._noise(work) + (self.encode(work) if steps_left == 1 else Cost(0.0))
        ends = tuple(next_time(work.t, steps) for work, steps in zip(taken, left, strict=True))
        return Jump(STEPS, taken, items, predicted, scale.mean_ms, choices, ends)

    def encode(self, work: SampleGroup) -> Cost:
        """What encoding all of a group costs."""
        return self.costs.encode[work.spec.form].at(work.items)

    def _noise(self, work: SampleGroup) -> Cost:
        return Cost(0.0) if work.begun else self.costs.noise.at(work.items)

    def _around(self, work: SampleGroup) -> Cost:
        """Device time beside the steps: noise before the first, encoding after the last."""
        return self._noise(work) + self.encode(work)


def planned(work: SampleGroup) -> Choice:
    """The plan that stands; the loop plans every work before it asks for a batch."""
    assert work.ticket.choice is not None
    return work.ticket.choice
