"""Plans rungs for a whole queue, and says yes or no to a new request. Pure: no clock, no I/O, no randomness.

Rungs aim at the target, judged at `rung_quantile`, and keep the deadline, judged at `admission_quantile` as admission
is. Who gives way: low is lowered, then normal, low is refused, high is lowered, normal is refused,
high is refused. What was admitted stays admitted.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

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


QueuePlan = dict[int, Choice]
"""By job key, in the order in which the engine prefers them: earliest due first."""


def plan_queue(jobs: Sequence[Job], setting: Setting) -> QueuePlan:
    """The highest rungs with which every job meets its target where that can be, and its deadline in any case.

    Jobs are looked at by deadline. Where one would be late, the jobs up to it are lowered one rung at a time, lower
    priorities first and inside one the least quality for the most time first, as far as it takes and no further.
    """
    order = sorted(jobs, key=lambda job: job.due_s)
    levels = [0] * len(order)
    finish = _finish(order, levels, setting)
    for index, job in enumerate(order):
        if _misses(job, finish[index], setting, by_target=True):
            lowered = _lower_until(order, levels, index, setting, by_target=True)
            if lowered is None and _misses(job, finish[index], setting, by_target=False):
                lowered = _lower_until(order, levels, index, setting, by_target=False)
                lowered = lowered or _all_down(order, levels, index)
            levels = lowered or levels
            finish = _finish(order, levels, setting)
    rows = zip(order, levels, finish, strict=True)
    return {job.key: Choice(job, level, cost) for job, level, cost in rows}


def admit(admitted: Sequence[Job], job: Job, setting: Setting, *, reserve_ms: float = 0.0) -> QueuePlan:
    """The plan with `job` in it, or a refusal; nothing is changed.

    Raises `BudgetTooSmall` when an idle worker would need longer, and `Shed` when the job would be late behind what is
    admitted, would make an admitted one late, or is low and would lower a high one.
    """
    alone_ms = _idle_ms(job, setting)
    budget_ms = (job.due_s - setting.now_s) * 1000
    if alone_ms > budget_ms:
        raise BudgetTooSmall(budget_ms=budget_ms + reserve_ms, least_budget_ms=alone_ms + reserve_ms)
    broken = _broken_by(admitted, job, setting)
    if broken is not None:
        raise _shed(admitted, job, setting, broken)
    plan = plan_queue([*admitted, job], setting)
    if job.priority == common_pb2.PRIORITY_LOW and _lowers_high(admitted, plan, setting):
        raise _shed(admitted, job, setting, "a high-priority request would be lowered")
    return plan


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
    scaled = [cost.scaled(setting.scale) for cost in own]
    if not setting.foreign:
        return scaled
    ahead = [Cost(ahead_ms(load.due_s, setting.foreign)) for load in loads]
    return [cost + foreign for cost, foreign in zip(scaled, ahead, strict=True)]


def _finish(order: Sequence[Job], levels: Sequence[int], setting: Setting) -> list[Cost]:
    return predict([job.options[level].load for job, level in zip(order, levels, strict=True)], setting)


def _late_ms(limit_s: float, finish: Cost, setting: Setting, quantile: float) -> float:
    return finish.quantile_ms(quantile) + setting.overhead_ms - (limit_s - setting.now_s) * 1000


def _misses(job: Job, finish: Cost, setting: Setting, *, by_target: bool) -> bool:
    if by_target and _late_ms(job.target_s, finish, setting, setting.rung_quantile) > 0:
        return True
    return _late_ms(job.due_s, finish, setting, setting.admission_quantile) > 0


def _lower_until(
    order: Sequence[Job], levels: Sequence[int], index: int, setting: Setting, *, by_target: bool
) -> list[int] | None:
    """The levels after the fewest moves down that bring job `index` in; None when no number does."""
    moves = _moves_down(order, levels, index, setting)

    def in_time(count: int) -> bool:
        finish = _finish(order, _apply(levels, moves[:count]), setting)
        return not _misses(order[index], finish[index], setting, by_target=by_target)

    if not in_time(len(moves)):
        return None
    low, high = 0, len(moves)
    while low < high:  # more moves never make it later
        middle = (low + high) // 2
        low, high = (low, middle) if in_time(middle) else (middle + 1, high)
    return _apply(levels, moves[:low])


def _moves_down(order: Sequence[Job], levels: Sequence[int], index: int, setting: Setting) -> list[int]:
    """Which job to lower next, again and again, among those up to `index`: cheapest quality first inside a priority."""
    heap = [_move(order[i], i, levels[i], setting) for i in range(index + 1) if levels[i] + 1 < len(order[i].options)]
    heapq.heapify(heap)
    moves = []
    while heap:
        _, _, level, i = heapq.heappop(heap)
        moves.append(i)
        if level + 2 < len(order[i].options):
            heapq.heappush(heap, _move(order[i], i, level + 1, setting))
    return moves


def _move(job: Job, index: int, level: int, setting: Setting) -> tuple[int, float, int, int]:
    """Sorts moves: by priority, then by quality lost for the time saved; among equals the least lowered job first.

    Jobs in one batch share their steps, so that lowering one of them to the bottom saves little: equals go together.
    """
    above, below = job.options[level], job.options[level + 1]
    saved_ms = solo_ms(above.load, setting.curve, setting.max_batch)
    saved_ms -= solo_ms(below.load, setting.curve, setting.max_batch)
    lost = above.rung.quality - below.rung.quality
    return job.priority, float(f"{lost / max(saved_ms, 1e-6):.3g}"), level, index


def _apply(levels: Sequence[int], moves: Sequence[int]) -> list[int]:
    lowered = list(levels)
    for index in moves:
        lowered[index] += 1
    return lowered


def _all_down(order: Sequence[Job], levels: Sequence[int], index: int) -> list[int]:
    return [len(order[i].options) - 1 if i <= index else level for i, level in enumerate(levels)]


def _idle_ms(job: Job, setting: Setting) -> float:
    (cheapest,) = predict([job.options[-1].load], replace(setting, foreign=()))
    return cheapest.quantile_ms(setting.admission_quantile) + setting.overhead_ms


def _lateness_ms(jobs: Sequence[Job], setting: Setting) -> dict[int, float]:
    """How late each job would be at the admission quantile with every job at its lowest rung."""
    order = sorted(jobs, key=lambda job: job.due_s)
    finish = _finish(order, [len(job.options) - 1 for job in order], setting)
    pairs = zip(order, finish, strict=True)
    return {job.key: _late_ms(job.due_s, cost, setting, setting.admission_quantile) for job, cost in pairs}


def _broken_by(admitted: Sequence[Job], job: Job, setting: Setting) -> str | None:
    """What would be late with `job` admitted and everyone lowered; None when nothing new would."""
    after = _lateness_ms([*admitted, job], setting)
    if after[job.key] > 0:
        return f"it would be {after[job.key]:.0f} ms late behind {len(admitted)} admitted requests"
    before = _lateness_ms(admitted, setting)
    broken = sum(1 for key, late_ms in before.items() if late_ms <= 0 < after[key])
    return f"it would make {broken} admitted requests late" if broken else None


def _lowers_high(admitted: Sequence[Job], plan: QueuePlan, setting: Setting) -> bool:
    high = [job for job in admitted if job.priority == common_pb2.PRIORITY_HIGH]
    if not high:
        return False
    before = plan_queue(admitted, setting)
    return any(plan[job.key].level > before[job.key].level for job in high)


def _shed(admitted: Sequence[Job], job: Job, setting: Setting, why: str) -> Shed:
    """A refusal that says when the queue will have drained far enough for the same request to fit."""
    finish = _finish(admitted, [len(other.options) - 1 for other in admitted], setting)
    foreign_ms = sum(work_ms for _, work_ms in setting.foreign)
    drain_ms = max((cost.mean_ms for cost in finish), default=0.0) + foreign_ms
    spare_ms = (job.due_s - setting.now_s) * 1000 - _idle_ms(job, setting)
    return Shed(f"refused under load: {why}", retry_after_s=max(1.0, drain_ms - spare_ms) / 1000)
