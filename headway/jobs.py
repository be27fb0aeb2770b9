"""What the planner plans: requests with the rungs that they may still take, on a worker as it is now."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from headway.cost import ONE, Cost, Foreign, Load, StepCurve, play, z_of
from headway.quality import Rung

FAILOVER_AFTER_MS = 4000.0
"""About what it takes to notice that a worker is lost, and to start another."""


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
    """What others on the device have to do."""
    later: Foreign = ()
    """What this worker itself has promised and cannot begin yet: the frames of paths."""
    shared: bool = False
    """Whether others on the device have something to do."""
    busy_ms: float = 0.0
    """What is left of a step that runs now and that nothing stops: all that is planned begins behind it."""
    stall_ms: float = 0.0
    """Kept free before deadlines, at admission and while it can be: see `headway.cost.LearnedStall`."""
    failover_share: float = 0.0
    """Kept free when work is admitted, for answers that others lose: see `failover_ms`."""
    rung_quantile: float = 0.9
    admission_quantile: float = 0.999
    commits: bool = False
    """Work that has begun at a high rung cannot be had for the price of a low one any more: an image that has taken the
    first of several steps needs another, and a frame is drawn to its end. A text may end after every token."""
    overhead_ms: float = 0.0
    """Host time between the last step and the answer (encoding not in the load, bookkeeping); added once."""

    @property
    def kept_s(self) -> float:
        """Between the end of a request's last step and its deadline at least."""
        return (self.overhead_ms + self.stall_ms) / 1000

    @property
    def factors(self) -> tuple[float, float, float]:
        """The scale's mean; what it makes of a variance of the work's own; and of the square of its mean."""
        scale = self.scale
        return scale.mean_ms, scale.var_ms2 + scale.mean_ms**2, scale.var_ms2

    @property
    def beside(self) -> Foreign:
        """All that is to be done beside these jobs."""
        return (*self.foreign, *self.later) if self.later else self.foreign

    def failover_ms(self, due_s: float, work_ms: float) -> float:
        """How long before `due_s` work of `work_ms` should be done, as things stand, when something new is admitted.

        What another worker loses comes here with less time left than it began with, and a device may stand still or be
        slower for seconds. Nothing of this can be made up for where queues are filled up to the deadlines. So who has
        seconds to wait is let in for `failover_share` less of them; the first `FAILOVER_AFTER_MS` are not touched, nor
        as much again as the work itself takes.
        """
        left_ms = (due_s - self.now_s) * 1000
        if left_ms <= FAILOVER_AFTER_MS:
            return 0.0
        return max(0.0, min(self.failover_share * left_ms, left_ms - FAILOVER_AFTER_MS, left_ms - 2 * work_ms))


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


def jobs_of(plan: QueuePlan) -> list[Job]:
    """What is planned, in the plan's order."""
    return [choice.job for choice in plan.values()]


def demand_of(jobs: Iterable[Job], setting: Setting) -> list[tuple[float, float]]:
    """What others on the device are to leave room for: (due, monotonic s; device ms), earliest first.

    The least that can be done, as admission counts it, due with the time that is kept free behind it: what is planned
    above that is lowered when it is in the way. `jobs`: what is left to do behind the step that runs, of which others
    are told beside this; what is promised for later is added. At most `DEMAND_BUCKETS` rows: where there are more,
    those that are due nearly together are one, due with the first. Pure.
    """
    order = sorted(jobs, key=lambda job: job.due_s)
    means, variances = play([job.options[-1].load for job in order], setting.curve, setting.max_batch)
    rows, before_ms, kept_s = list[tuple[float, float]](), 0.0, setting.kept_s
    z_rung, z_admission, (factor, own, common) = (
        z_of(setting.rung_quantile),
        z_of(setting.admission_quantile),
        setting.factors,
    )
    for job, mean_ms, var_ms2 in zip(order, means, variances, strict=True):
        due_s, spread_ms = job.due_s - kept_s, math.sqrt(var_ms2 * own + mean_ms * mean_ms * common)
        # At the admission quantile, or just in time where rungs' own quantile is: it is not lost, then.
        least_ms = max(mean_ms * factor + z_rung * spread_ms, (due_s - setting.now_s) * 1000)
        own_ms = max(0.0, min(mean_ms * factor + z_admission * spread_ms, least_ms))
        if own_ms > before_ms:  # else it shares the steps of those before it
            rows.append((due_s, own_ms - before_ms))
            before_ms = own_ms
    rows = sorted([*rows, *setting.later])
    return _in_buckets(rows)


def _in_buckets(rows: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `DEMAND_BUCKETS` rows of `rows`, which come by deadline."""
    gaps_s = [after[0] - before[0] for before, after in itertools.pairwise(rows)]
    while len(rows) > DEMAND_BUCKETS:
        place = gaps_s.index(min(gaps_s))
        rows[place : place + 2] = [(rows[place][0], rows[place][1] + rows[place + 1][1])]
        gap_s = gaps_s.pop(place)
        if place < len(gaps_s):
            gaps_s[place] += gap_s
    return rows
