"""What the planner plans: requests with the rungs that they may still take, on a worker as it is now."""

from collections.abc import Iterable
from dataclasses import dataclass

from headway.cost import ONE, Cost, Foreign, Load, StepCurve, predict_finish
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
    """What is to be done beside these jobs: by others on the device, and later by this worker itself."""
    shared: bool = False
    """Whether others on the device have something to do."""
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

    @property
    def kept_s(self) -> float:
        """Between the end of a request's last step and its deadline at least."""
        return (self.overhead_ms + self.stall_ms) / 1000


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
    are told beside this. At most `DEMAND_BUCKETS` rows: where there are more, those that are due nearly together are
    one, due with the first. Pure.
    """
    order = sorted(jobs, key=lambda job: job.due_s)
    finish = predict_finish([job.options[-1].load for job in order], setting.curve, setting.max_batch)
    rows, before_ms = list[tuple[float, float]](), 0.0
    for job, cost in zip(order, finish, strict=True):
        due_s = job.due_s - setting.kept_s
        own_ms = _counted_on_ms(cost.scaled(setting.scale), due_s, setting)
        if own_ms > before_ms:  # else it shares the steps of those before it
            rows.append((due_s, own_ms - before_ms))
            before_ms = own_ms
    while len(rows) > DEMAND_BUCKETS:
        place = min(range(1, len(rows)), key=lambda place: rows[place][0] - rows[place - 1][0])
        rows[place - 1 : place + 1] = [(rows[place - 1][0], rows[place - 1][1] + rows[place][1])]
    return rows


def _counted_on_ms(finish: Cost, due_s: float, setting: Setting) -> float:
    """When a job is over: at the admission quantile, or just in time where rungs' own quantile is; not lost, then."""
    room_ms = (due_s - setting.now_s) * 1000
    return min(finish.quantile_ms(setting.admission_quantile), max(finish.quantile_ms(setting.rung_quantile), room_ms))
