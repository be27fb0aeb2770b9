"""Plans rungs for a whole queue, and says yes or no to a new request. Pure: no clock, no I/O, no randomness.

Rungs aim at the target and are judged at `rung_quantile`, so long as the deadline can still be kept by lowering, which
is judged at `admission_quantile` as admission is. Who gives way: low is lowered, then normal, low is refused, high is
lowered, normal is refused, high is refused. What was admitted stays admitted.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from headway.cost import Cost, Load, ahead_ms, predict_finish
from headway.errors import BudgetTooSmall, Shed
from headway.jobs import Choice, Job, Option, QueuePlan, Setting
from headway.queue_model import QueueModel
from headway.rung_search import HOPELESS, best_levels
from headway.v1 import common_pb2

__all__ = [
    "Choice", "Job", "Option", "QueuePlan", "Setting", "admit", "at_present", "check", "check_budget", "hopeless",
    "join", "late_ms", "plan_queue", "predict", "reason_of", "shed",
]  # fmt: skip


_ROUNDING_MS = 1e-6


def plan_queue(jobs: Sequence[Job], setting: Setting) -> QueuePlan:
    """The highest rungs with which every job meets its target where that can be, and its deadline in any case.

    Lower priorities give way first, and inside one the least quality for the most time: see `headway.rung_search`.
    """
    return _plan(QueueModel(jobs, setting))


def _plan(model: QueueModel) -> QueuePlan:
    levels = best_levels(model)
    rows = zip(model.order, levels, model.costs(levels), strict=True)
    return {job.key: Choice(job, level, cost) for job, level, cost in rows}


def admit(admitted: Sequence[Job], job: Job, setting: Setting, *, reserve_ms: float = 0.0) -> QueuePlan:
    """The plan with `job` in it, or a refusal; nothing is changed.

    Raises as `check` does, and `Shed` when the job is low and would lower a high one.
    """
    model = check(admitted, job, setting, reserve_ms=reserve_ms)
    plan = _plan(model)
    if job.priority == common_pb2.PRIORITY_LOW and _lowers_high(admitted, plan, setting):
        raise shed(admitted, job, setting, "a high-priority request would be lowered")
    return plan


def join(admitted: Sequence[Job], job: Job, setting: Setting) -> QueuePlan:
    """What a job gets until all are planned again for which room is kept: nobody is asked whether it fits."""
    model = QueueModel([*admitted, job], setting)
    place = model.order.index(job)
    return {job.key: Choice(job, model.bottom[place], model.costs(model.bottom)[place])}


def check(admitted: Sequence[Job], job: Job, setting: Setting, *, reserve_ms: float = 0.0) -> QueueModel:
    """Whether `job` can be kept beside what is admitted; returns all of them as the planner's model has them.

    Raises `BudgetTooSmall` when an idle worker would need longer, and `Shed` when the job would be late behind what is
    admitted, or would make an admitted one late.
    """
    check_budget(job, setting, reserve_ms=reserve_ms)
    model = QueueModel([*admitted, job], setting)
    broken = _broken_by(admitted, job, model)
    if broken is not None:
        raise shed(admitted, job, setting, broken)
    return model


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
    best_alone = plan_queue([job], replace(setting, foreign=(), later=()))[job.key].level
    return common_pb2.RUNG_REASON_QUEUE_PRESSURE if best_alone < level else common_pb2.RUNG_REASON_BEST_FIT


def predict(loads: Sequence[Load], setting: Setting) -> list[Cost]:
    """When each load would finish, from now: `predict_finish` at the host's present speed, behind foreign work."""
    own = predict_finish(loads, setting.curve, setting.max_batch)
    return [at_present(cost, load.due_s, setting) for cost, load in zip(own, loads, strict=True)]


def at_present(own: Cost, due_s: float, setting: Setting) -> Cost:
    """Calibrated work of this worker's own at the host's present speed, behind all that goes before it.

    That is the step that runs now, and foreign work that is due earlier.
    """
    return own.scaled(setting.scale) + Cost(setting.busy_ms + ahead_ms(due_s - setting.kept_s, setting.beside))


def _own_finish(order: Sequence[Job], levels: Sequence[int], setting: Setting) -> list[Cost]:
    """As calibrated, and as if this worker had the device alone."""
    loads = [job.options[level].load for job, level in zip(order, levels, strict=True)]
    return predict_finish(loads, setting.curve, setting.max_batch)


def late_ms(limit_s: float, finish: Cost, setting: Setting, quantile: float) -> float:
    """How long after the limit an answer comes with this probability at most; negative when before it."""
    kept_ms = setting.overhead_ms + setting.stall_ms
    return finish.quantile_ms(quantile) + kept_ms - (limit_s - setting.now_s) * 1000


def hopeless(plan: QueuePlan, setting: Setting) -> list[int]:
    """Keys of those that would be late with all but a small chance even if they began now, alone and at their lowest.

    By deadline they would come first, and so take the time of others that could still be kept, one after the other. A
    text is left as it is: it may end after the token that it has. With nobody else there it is tried all the same.
    """
    if not setting.commits or (len(plan) == 1 and not setting.beside):
        return []
    late = (choice.job for choice in plan.values() if late_ms(choice.job.due_s, choice.finish, setting, 0.5) > 0)
    surely = min(HOPELESS, 1 - setting.admission_quantile)
    return [job.key for job in late if _idle_ms(job, setting, surely) > (job.due_s - setting.now_s) * 1000]


def _idle_ms(job: Job, setting: Setting, quantile: float | None = None) -> float:
    """What the job takes at least on an idle worker, at the admission quantile or another one."""
    (cheapest,) = predict([job.options[-1].load], replace(setting, foreign=(), later=(), busy_ms=0.0))
    return cheapest.quantile_ms(quantile or setting.admission_quantile) + setting.overhead_ms


def _broken_by(admitted: Sequence[Job], job: Job, together: QueueModel) -> str | None:
    """What would be late with `job` admitted and everyone lowered; None when nothing new would."""
    late = dict(zip((one.key for one in together.order), together.admission_lateness_ms(), strict=True))
    if late[job.key] > 0:
        kept = ", with what is kept free for answers that others lose" if together.setting.failover_share else ""
        return f"it would be {late[job.key]:.0f} ms late behind {len(admitted)} admitted requests{kept}"
    if max(late.values()) <= 0 and max(together.foreign_lateness_ms(), default=0.0) <= 0:
        return None
    before = QueueModel(admitted, together.setting)
    broken = sum(late[key] > most_ms for key, most_ms in _most_late_ms(before).items())
    if broken:
        return f"it would make {broken} admitted requests late"
    if _breaks_foreign(before, together):
        return "it would make admitted work of another worker on the device late"
    return None


def _breaks_foreign(before: QueueModel, together: QueueModel) -> bool:
    """Whether foreign work comes late, or later than it would without the newcomer; what is lost does not count."""
    rows = zip(before.foreign_lateness_ms(), together.foreign_lateness_ms(), together.foreign_lost, strict=True)
    return any(after_ms > max(0.0, ms) + _ROUNDING_MS for ms, after_ms, lost in rows if not lost)


def _most_late_ms(model: QueueModel) -> dict[int, float]:
    """How late each admitted job may be made: not at all, or no later than it is, unless it is lost already."""
    late = model.admission_lateness_ms()
    if max(late, default=0.0) <= 0:
        return {job.key: 0.0 for job in model.order}
    surely = model.due_lateness_ms(model.bottom, min(HOPELESS, 1 - model.setting.admission_quantile))
    return {
        job.key: math.inf if surely_ms > 0 else max(0.0, late_ms) + _ROUNDING_MS
        for job, late_ms, surely_ms in zip(model.order, late, surely, strict=True)
    }


def _lowers_high(admitted: Sequence[Job], plan: QueuePlan, setting: Setting) -> bool:
    """Whether a high job is lower in `plan` than it would be without the new one."""
    high = [job for job in admitted if job.priority == common_pb2.PRIORITY_HIGH]
    if not any(plan[job.key].level for job in high):
        return False
    before = plan_queue(admitted, setting)
    return any(plan[job.key].level > before[job.key].level for job in high)


def shed(admitted: Sequence[Job], job: Job, setting: Setting, why: str) -> Shed:
    """A refusal that says when the queue will have drained far enough for the same request to fit."""
    model = QueueModel(admitted, setting)
    foreign_ms = sum(work_ms for _, work_ms in setting.beside)
    queued_ms = max(model.finish(model.bottom)[0], default=0.0) * setting.scale.mean_ms
    drain_ms = setting.busy_ms + queued_ms + foreign_ms
    alone_ms = _idle_ms(job, setting)
    spare_ms = (job.due_s - setting.now_s) * 1000 - alone_ms - setting.failover_ms(job.due_s, alone_ms)
    return Shed(f"refused under load: {why}", retry_after_s=max(alone_ms, drain_ms - spare_ms) / 1000)
