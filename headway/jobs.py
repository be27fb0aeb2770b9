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


def demand_of(plan: QueuePlan, setting: Setting, *, running_ms: float = 0.0) -> list[tuple[float, float]]:
    """What a plan has still to do, for others on the device: (due, monotonic s; device ms), earliest first.

    As much as admission counts on, and due with the time that is kept free behind it. `setting` is what it was planned
    with; `running_ms` of it are in a step that has begun, of which others are told beside this. At most
    `DEMAND_BUCKETS` rows: where there are more, those that are due nearly together are one, due with the first. Pure.
    """
    rows, before_ms = list[tuple[float, float]](), running_ms
    for choice in plan.values():
        due_s = choice.job.due_s - setting.kept_s
        own_ms = _counted_on_ms(choice, due_s, setting) - setting.busy_ms - ahead_ms(due_s, setting.foreign)
        if own_ms > before_ms:  # else it shares the steps of those before it
            rows.append((due_s, own_ms - before_ms))
            before_ms = own_ms
    while len(rows) > DEMAND_BUCKETS:
        place = min(range(1, len(rows)), key=lambda place: rows[place][0] - rows[place - 1][0])
        rows[place - 1 : place + 1] = [(rows[place - 1][0], rows[place - 1][1] + rows[place][1])]
    return rows


def _counted_on_ms(choice: Choice, due_s: float, setting: Setting) -> float:
    """When a job is over, from now: at the admission quantile, or in time where it would be lowered for that."""
    room_ms = (due_s - setting.now_s) * 1000
    finish = choice.finish
    return min(finish.quantile_ms(setting.admission_quantile), max(finish.quantile_ms(setting.rung_quantile), room_ms))
