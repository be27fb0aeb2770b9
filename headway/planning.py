"""Plans rungs for a whole queue, and says yes or no to a new request. Pure: no clock, no I/O, no randomness.

Rungs aim at the target and are judged at `rung_quantile`, so long as the deadline can still be kept by lowering, which
is judged at `admission_quantile` as admission is. Who gives way: low is lowered, then normal, low is refused, high is
lowered, normal is refused, high is refused. What was admitted stays admitted.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from headway.cost import ONE, Cost, Foreign, Load, StepCurve, ahead_ms, predict_finish, solo_ms
from headway.errors import BudgetTooSmall, Shed
from headway.quality import Rung
from headway.v1 import common_pb2


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
    rung_quantile: float = 0.9
    admission_quantile: float = 0.999
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


class _Move(NamedTuple):
    """One job lowered by one rung. Sorts by priority, then by quality lost for the time saved.

    Among equals the least lowered job comes first: jobs in one batch share their steps, so that lowering one of them
    to the bottom saves little.
    """

    priority: int
    lost_per_ms: float
    level: int
    """The level that is given up."""
    place: int
    """The job's place in the queue."""


_STILL_SAVED = 2 / 3
"""What lowering a job that has begun wins back of the difference: an image at 4 steps may end at 2, but not at 1."""
_GROUPS = 8
"""Late jobs of a long queue are brought in by so many groups of neighbours, because planning must stay short."""

QueuePlan = dict[int, Choice]
"""By job key, in the order in which the engine prefers them: earliest due first."""


def plan_queue(jobs: Sequence[Job], setting: Setting) -> QueuePlan:
    """The highest rungs with which every job meets its target where that can be, and its deadline in any case.

    Jobs are looked at by deadline. Where one would be late, the jobs up to it are lowered one rung at a time, lower
    priorities first and inside one the least quality for the most time first, as far as it takes and no further.
    """
    order = sorted(jobs, key=lambda job: job.due_s)
    levels, looked_at = [0] * len(order), 0
    finish = _finish(order, levels, setting)
    group, moves = max(1, len(order) // _GROUPS), list[_Move]()
    while late := [
        index
        for index in range(looked_at, len(order))
        if _misses(order[index], levels[index], finish[index], setting, by_target=True)
    ]:
        moves = moves or _moves_down(order, setting)
        levels, looked_at = _lower_for(late[:group], order, levels, moves, setting)
        finish = _finish(order, levels, setting)
    rows = zip(order, levels, finish, strict=True)
    return {job.key: Choice(job, level, cost) for job, level, cost in rows}


def admit(admitted: Sequence[Job], job: Job, setting: Setting, *, reserve_ms: float = 0.0) -> QueuePlan:
    """The plan with `job` in it, or a refusal; nothing is changed.

    Raises `BudgetTooSmall` when an idle worker would need longer, and `Shed` when the job would be late behind what is
    admitted, would make an admitted one late, or is low and would lower a high one.
    """
    check_budget(job, setting, reserve_ms=reserve_ms)
    broken = _broken_by(admitted, job, setting)
    if broken is not None:
        raise shed(admitted, job, setting, broken)
    plan = plan_queue([*admitted, job], setting)
    if job.priority == common_pb2.PRIORITY_LOW and _lowers_high(admitted, plan, setting):
        raise shed(admitted, job, setting, "a high-priority request would be lowered")
    return plan


def check_budget(job: Job, setting: Setting, *, reserve_ms: float = 0.0) -> None:
    """Raises `BudgetTooSmall` when an idle worker would need longer at the lowest rung that is allowed."""
    alone_ms = _idle_ms(job, setting)
    budget_ms = (job.due_s - setting.now_s) * 1000
    if alone_ms > budget_ms:
        raise BudgetTooSmall(budget_ms=budget_ms + reserve_ms, least_budget_ms=alone_ms + reserve_ms)


def reason_of(job: Job, level: int, setting: Setting, *, exact: bool, floored: bool) -> common_pb2.RungReason:
    """Why the planner chose this level for a job that was just admitted."""
    if exact:
        return common_pb2.RUNG_REASON_EXACT
    if level == 0:
        return common_pb2.RUNG_REASON_BEST_FIT
    if floored and level == len(job.options) - 1:
        return common_pb2.RUNG_REASON_FLOOR
    best_alone = plan_queue([job], replace(setting, foreign=()))[job.key].level
    return common_pb2.RUNG_REASON_QUEUE_PRESSURE if best_alone < level else common_pb2.RUNG_REASON_BEST_FIT


def predict(loads: Sequence[Load], setting: Setting) -> list[Cost]:
    """When each load would finish, from now: `predict_finish` at the host's present speed, behind foreign work."""
    own = predict_finish(loads, setting.curve, setting.max_batch)
    return [at_present(cost, load.due_s, setting) for cost, load in zip(own, loads, strict=True)]


def at_present(own: Cost, due_s: float, setting: Setting) -> Cost:
    """Calibrated work of this worker's own at the host's present speed, behind foreign work that is due earlier."""
    scaled = own.scaled(setting.scale)
    return scaled + Cost(ahead_ms(due_s, setting.foreign)) if setting.foreign else scaled


def _own_finish(order: Sequence[Job], levels: Sequence[int], setting: Setting) -> list[Cost]:
    """As calibrated, and as if this worker had the device alone."""
    loads = [job.options[level].load for job, level in zip(order, levels, strict=True)]
    return predict_finish(loads, setting.curve, setting.max_batch)


def _finish(order: Sequence[Job], levels: Sequence[int], setting: Setting) -> list[Cost]:
    own = _own_finish(order, levels, setting)
    return [at_present(cost, job.due_s, setting) for cost, job in zip(own, order, strict=True)]


def late_ms(limit_s: float, finish: Cost, setting: Setting, quantile: float) -> float:
    """How long after the limit an answer comes with this probability at most; negative when before it."""
    return finish.quantile_ms(quantile) + setting.overhead_ms - (limit_s - setting.now_s) * 1000


def _misses(job: Job, level: int, finish: Cost, setting: Setting, *, by_target: bool) -> bool:
    """Whether a job planned at `level` would come too late.

    It is to meet its target and its deadline as rungs are judged; and as admission is judged it must still meet its
    deadline if it is lowered when it has begun, which does not win back all that a lower rung saves.
    """
    limit_s = job.target_s if by_target else job.due_s
    if late_ms(limit_s, finish, setting, setting.rung_quantile) > 0:
        return True
    shape = setting.curve, setting.max_batch
    saved_ms = solo_ms(job.options[level].load, *shape) - solo_ms(job.options[-1].load, *shape)
    lowered = Cost(finish.mean_ms - _STILL_SAVED * saved_ms * setting.scale.mean_ms, finish.var_ms2)
    return late_ms(job.due_s, lowered, setting, setting.admission_quantile) > 0


def _lower_for(
    late: Sequence[int], order: Sequence[Job], levels: list[int], moves: Sequence[_Move], setting: Setting
) -> tuple[list[int], int]:
    """Levels with the fewest moves down that bring the late jobs in, and the first job that was not looked at.

    Where one of several cannot be brought in, the first is seen to alone.
    """
    last = late[-1]
    open_moves = [move.place for move in moves if move.place <= last and move.level >= levels[move.place]]
    bottom = _apply(levels, open_moves)
    lowest = _finish(order, bottom, setting)
    in_by_target = {i: not _misses(order[i], bottom[i], lowest[i], setting, by_target=True) for i in late}
    behind = [i for i in late if not in_by_target[i]]
    lost = [i for i in behind if _misses(order[i], bottom[i], lowest[i], setting, by_target=False)]
    if lost and len(late) > 1:
        return _lower_for(late[:1], order, levels, moves, setting)
    if lost:
        return _apply(levels, open_moves), last + 1

    def in_time(count: int) -> bool:
        lowered = _apply(levels, open_moves[:count])
        finish = _own_finish(order, lowered, setting)
        at_speed = {i: at_present(finish[i], order[i].due_s, setting) for i in late}
        return not any(_misses(order[i], lowered[i], at_speed[i], setting, by_target=in_by_target[i]) for i in late)

    low, high = 0, len(open_moves)
    while low < high:  # more moves never make it later
        middle = (low + high) // 2
        low, high = (low, middle) if in_time(middle) else (middle + 1, high)
    return _apply(levels, open_moves[:low]), last + 1


def _moves_down(order: Sequence[Job], setting: Setting) -> list[_Move]:
    """Every lowering there is, in the order of giving way."""
    return sorted(move for index, job in enumerate(order) for move in _moves_of(job, index, setting))


def _moves_of(job: Job, index: int, setting: Setting) -> Iterator[_Move]:
    """The lowerings of one job, from the top; none is offered before the one above it."""
    times_ms = [solo_ms(option.load, setting.curve, setting.max_batch) for option in job.options]
    dearest = 0.0
    for level, (above, below) in enumerate(itertools.pairwise(job.options)):
        saved_ms = times_ms[level] - times_ms[level + 1]
        lost = above.rung.quality - below.rung.quality
        dearest = max(dearest, float(f"{lost / max(saved_ms, 1e-6):.3g}"))
        yield _Move(job.priority, dearest, level, index)


def _apply(levels: Sequence[int], moves: Sequence[int]) -> list[int]:
    lowered = list(levels)
    for index in moves:
        lowered[index] += 1
    return lowered


def _idle_ms(job: Job, setting: Setting) -> float:
    (cheapest,) = predict([job.options[-1].load], replace(setting, foreign=()))
    return cheapest.quantile_ms(setting.admission_quantile) + setting.overhead_ms


def _lateness_ms(jobs: Sequence[Job], setting: Setting) -> dict[int, float]:
    """How late each job would be at the admission quantile with every job at its lowest rung."""
    order = sorted(jobs, key=lambda job: job.due_s)
    finish = _finish(order, [len(job.options) - 1 for job in order], setting)
    pairs = zip(order, finish, strict=True)
    return {job.key: late_ms(job.due_s, cost, setting, setting.admission_quantile) for job, cost in pairs}


def _broken_by(admitted: Sequence[Job], job: Job, setting: Setting) -> str | None:
    """What would be late with `job` admitted and everyone lowered; None when nothing new would."""
    together = [*admitted, job]
    after = _lateness_ms(together, setting)
    if after[job.key] > 0:
        return f"it would be {after[job.key]:.0f} ms late behind {len(admitted)} admitted requests"
    before = _lateness_ms(admitted, setting)
    broken = sum(1 for key, late_ms in before.items() if late_ms <= 0 < after[key])
    if broken:
        return f"it would make {broken} admitted requests late"
    if _late_foreign(together, setting) > _late_foreign(admitted, setting):
        return "it would make admitted work of another worker on the device late"
    return None


def _late_foreign(jobs: Sequence[Job], setting: Setting) -> int:
    """How many of the other workers' declared loads would be late, with every job here at its lowest rung.

    On one device all work that is due up to a time must fit in before it, whoever it belongs to.
    """
    order = sorted(jobs, key=lambda job: job.due_s)
    lowest = [job.options[-1].load for job in order]
    own = [cost.scaled(setting.scale).mean_ms for cost in predict_finish(lowest, setting.curve, setting.max_batch)]
    late = 0
    for due_s, _ in setting.foreign:
        before_ms = max((ms for job, ms in zip(order, own, strict=True) if job.due_s <= due_s), default=0.0)
        foreign_ms = sum(work_ms for other_due_s, work_ms in setting.foreign if other_due_s <= due_s)
        late += before_ms + foreign_ms > (due_s - setting.now_s) * 1000
    return late


def _lowers_high(admitted: Sequence[Job], plan: QueuePlan, setting: Setting) -> bool:
    high = [job for job in admitted if job.priority == common_pb2.PRIORITY_HIGH]
    if not high:
        return False
    before = plan_queue(admitted, setting)
    return any(plan[job.key].level > before[job.key].level for job in high)


def shed(admitted: Sequence[Job], job: Job, setting: Setting, why: str) -> Shed:
    """A refusal that says when the queue will have drained far enough for the same request to fit."""
    finish = _finish(admitted, [len(other.options) - 1 for other in admitted], setting)
    foreign_ms = sum(work_ms for _, work_ms in setting.foreign)
    drain_ms = max((cost.mean_ms for cost in finish), default=0.0) + foreign_ms
    alone_ms = _idle_ms(job, setting)
    spare_ms = (job.due_s - setting.now_s) * 1000 - alone_ms
    return Shed(f"refused under load: {why}", retry_after_s=max(alone_ms, drain_ms - spare_ms) / 1000)
