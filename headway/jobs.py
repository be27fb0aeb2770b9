"""What the planner plans: requests with the rungs that they may still take, on a worker as it is now."""

from dataclasses import dataclass

from headway.cost import ONE, Cost, Foreign, Load, StepCurve, ahead_ms
from headway.quality import Rung


@dataclass(frozen=True, slots=True)
class Option:
    """One rung that a request may still take, and what is left to do at it."""

    rung: Rung
    load: Load


@dataclass(frozen=True, slots=True)
class Job:
    """One request, as the planner sees it. Times are monotonic seconds."""

    key: int
    priority: int
    """1 low, 2 normal, 3 high."""
    due_s: float
    """When the answer must be complete."""
    target_s: float
    """When it is wanted; at most `due_s`."""
    options: tuple[Option, ...]
    """Best first, the caller's floor applied; never empty."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What the planner knows of the worker."""

    now_s: float
    curve: StepCurve
    """As calibrated."""
    max_batch: int
    scale: Cost = ONE
    """How much slower or faster the host is now; common to all that is ahead."""
    foreign: Foreign = ()
    busy_ms: float = 0.0
    """What is left of a step that runs now and that nothing stops: all that is planned begins behind it."""
    stall_ms: float = 0.0
    """Kept free before deadlines, at admission and while it can be: see `headway.cost.LearnedStall`."""
    rung_quantile: float = 0.9
    admission_quantile: float = 0.999
    commits: bool = False
    """Work that has begun at a high rung cannot be had for the price of a low one any more: an image that has taken the
    first of several steps needs another, and a frame is drawn to its end. A text may end after every token."""
    overhead_ms: float = 0.0
    """Host time between the last step and the answer (encoding not in the load, bookkeeping); added once."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is planned for one job."""

    job: Job
    level: int
    """Index into `job.options`."""
    finish: Cost
    """From now."""

    @property
    def option(self) -> Option:
        return self.job.options[self.level]


QueuePlan = dict[int, Choice]
"""By job key, in the order in which the engine prefers them: earliest due first."""

DEMAND_BUCKETS = 16


def demand_of(plan: QueuePlan, foreign: Foreign) -> list[tuple[float, float]]:
    """What a plan has still to do, for others on the device: (due, monotonic s; device ms), earliest first.

    `foreign` is what it was planned behind. At most `DEMAND_BUCKETS` rows: the last holds all that is due later. Pure.
    """
    rows, before_ms = list[tuple[float, float]](), 0.0
    for choice in plan.values():
        own_ms = choice.finish.mean_ms - ahead_ms(choice.job.due_s, foreign)
        rows.append((choice.job.due_s, max(0.0, own_ms - before_ms)))
        before_ms = max(before_ms, own_ms)
    head, tail = rows[: DEMAND_BUCKETS - 1], rows[DEMAND_BUCKETS - 1 :]
    return [*head, (tail[0][0], sum(work_ms for _, work_ms in tail))] if tail else head
