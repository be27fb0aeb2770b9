"""A queue as plain numbers: when every job would finish at given rungs, and how late that is. Pure.

This is the planner's inner loop, run several times for a plan, between two steps of the engine. So it works on lists
and not on objects; `headway.cost.play` is shared with `predict_finish`.
"""

import math
from collections.abc import Sequence
from itertools import accumulate

from headway.cost import Cost, play, solo_ms, z_of
from headway.jobs import Job, Setting

STILL_SAVED = 2 / 3
"""What lowering a job that has begun wins back of the difference: an image at 4 steps may end at 2, but not at 1."""

LOST = 0.25
"""Foreign work that is late, by itself, by more than this share of all that is due up to then, is not waited for."""


class QueueModel:
    """Jobs by deadline. `levels`, one a job, index the jobs' options; nothing is kept between two calls but costs."""

    def __init__(self, jobs: Sequence[Job], setting: Setting) -> None:
        self.order = sorted(jobs, key=_due_s)
        self.setting = setting
        self.bottom = [len(job.options) - 1 for job in self.order]
        self._ready_s = [job.due_s - setting.kept_s for job in self.order]
        """When the last step of each job must be over."""
        self._rows = sorted(setting.beside)
        self.foreign_late_ms = self._foreign_late_ms()
        """How late each row of foreign work is with nothing done here, by deadline."""
        self.foreign_lost = self._foreign_lost()
        """Which rows are late by far whatever is done here."""
        self.ahead_ms = [setting.busy_ms + foreign_ms for foreign_ms in self._foreign_ms()]
        """What passes for each job beside this worker's queue: the step that runs now, and foreign work due earlier."""
        now_s, overhead_ms = setting.now_s, setting.overhead_ms
        fixed_ms = [ahead_ms + overhead_ms for ahead_ms in self.ahead_ms]
        self.by_due = [
            ahead_ms - (job.due_s - now_s) * 1000 for job, ahead_ms in zip(self.order, fixed_ms, strict=True)
        ]
        """What must still be added to a finish to have its lateness; ms."""
        self.by_foreign = self._by_foreign()
        """The same for the tightest foreign deadline that the job goes before; minus infinity where there is none."""
        self.by_target = [
            ahead_ms - (job.target_s - now_s) * 1000 for job, ahead_ms in zip(self.order, fixed_ms, strict=True)
        ]
        self._credits: dict[tuple[int, int], float] = {}

    def _foreign_ms(self) -> list[float]:
        """Foreign work that is due earlier, for each job."""
        rows, ahead_ms, found = self._rows, 0.0, []
        place = 0
        for ready_s in self._ready_s:
            while place < len(rows) and rows[place][0] < ready_s:
                ahead_ms += rows[place][1]
                place += 1
            found.append(ahead_ms)
        return found

    def _foreign_late_ms(self) -> list[float]:
        spent_ms, found = self.setting.busy_ms, list[float]()
        for due_s, work_ms in self._rows:
            spent_ms += work_ms
            found.append(spent_ms - (due_s - self.setting.now_s) * 1000)
        return found

    def _foreign_lost(self) -> list[bool]:
        """What is told is rather too much, and may be a moment old: a little late is not lost."""
        work_ms = accumulate(work_ms for _, work_ms in self._rows)
        return [late_ms > LOST * ms for late_ms, ms in zip(self.foreign_late_ms, work_ms, strict=True)]

    def _by_foreign(self) -> list[float]:
        """Foreign work waits for what is due before it here. What is late whatever is done here, is not waited for."""
        rows = [row for row, lost in enumerate(self.foreign_lost) if not lost]
        most_ms, found = -math.inf, list[float]()
        for ready_s in reversed(self._ready_s):
            while rows and self._rows[rows[-1]][0] >= ready_s:
                most_ms = max(most_ms, self.foreign_late_ms[rows.pop()])
            found.append(most_ms)
        return found[::-1]

    def finish(self, levels: Sequence[int]) -> tuple[list[float], list[float]]:
        """Mean and variance of each job's finish, as calibrated, from now."""
        loads = [job.options[level].load for job, level in zip(self.order, levels, strict=True)]
        return play(loads, self.setting.curve, self.setting.max_batch)

    def costs(self, levels: Sequence[int]) -> list[Cost]:
        """The same at the host's present speed, behind the step that runs now and foreign work that is due earlier."""
        factor, own, common = self.setting.factors
        return [
            Cost(mean * factor + ahead_ms, var * own + mean * mean * common)
            for mean, var, ahead_ms in zip(*self.finish(levels), self.ahead_ms, strict=True)
        ]

    def lateness_ms(self, levels: Sequence[int], limits: Sequence[float]) -> list[float]:
        """How late each job is for `limits` as rungs are judged, or for its deadline as admission is, if that is more.

        By its deadline a job may still be lowered when it has begun, which does not win back all that a lower rung
        saves: that is its credit. Others' deadlines on the device are kept as planned, with nothing to win back: what
        others are known to need is the least they can do.
        """
        means, variances = self.finish(levels)
        setting, by_due, by_foreign, stall_ms = self.setting, self.by_due, self.by_foreign, self.setting.stall_ms
        factor, own, common = setting.factors
        z_rung, z_admission, sqrt = z_of(setting.rung_quantile), z_of(setting.admission_quantile), math.sqrt
        late = []
        for index, (mean, var) in enumerate(zip(means, variances, strict=True)):
            spread = sqrt(var * own + mean * mean * common)
            mean *= factor
            as_rung = mean + z_rung * spread + limits[index]
            own_ms = mean + z_admission * spread
            as_admitted = own_ms + stall_ms + by_due[index]
            if as_admitted > 0 and as_admitted > as_rung:
                as_admitted -= self._credit_ms(index, levels[index])
            late.append(max(as_rung, as_admitted, own_ms + by_foreign[index]))
        return late

    def admission_lateness_ms(self) -> list[float]:
        """How late each job would be at the admission quantile, with every job at its lowest rung.

        What is kept free for answers that others lose counts as gone.
        """
        late_ms = self.due_lateness_ms(self.bottom, self.setting.admission_quantile, self.setting.stall_ms)
        if not self.setting.failover_share:
            return late_ms
        return [ms + self._failover_ms(index) for index, ms in enumerate(late_ms)]

    def _failover_ms(self, index: int) -> float:
        alone_ms = self._solo_ms(index, -1) * self.setting.scale.quantile_ms(self.setting.admission_quantile)
        return self.setting.failover_ms(self.order[index].due_s, alone_ms)

    def due_lateness_ms(self, levels: Sequence[int], quantile: float, kept_ms: float = 0.0) -> list[float]:
        """How late each job would be for its deadline, less `kept_ms`, with this probability at most."""
        finish_ms = self._quantiles_ms(levels, quantile)
        return [own_ms + kept_ms + limit for own_ms, limit in zip(finish_ms, self.by_due, strict=True)]

    def _quantiles_ms(self, levels: Sequence[int], quantile: float) -> list[float]:
        """When each job would be finished with this probability, as if this worker had the device alone."""
        means, variances = self.finish(levels)
        factor, own, common = self.setting.factors
        z = z_of(quantile)
        return [
            mean * factor + z * math.sqrt(var * own + mean * mean * common)
            for mean, var in zip(means, variances, strict=True)
        ]

    def foreign_lateness_ms(self) -> list[float]:
        """How late each row of foreign work would be at the admission quantile, with every job here at its lowest rung.

        On one device all work that is due up to a time must fit in before it, whoever it belongs to.
        """
        if not self._rows:
            return []
        own_ms = self._quantiles_ms(self.bottom, self.setting.admission_quantile)
        late, place, before_ms = list[float](), 0, 0.0
        for (due_s, work_ms), late_ms in zip(self._rows, self.foreign_late_ms, strict=True):
            while place < len(own_ms) and self._ready_s[place] <= due_s:
                before_ms = max(before_ms, own_ms[place])
                place += 1
            late.append(late_ms + before_ms + self.setting.failover_ms(due_s, work_ms))
        return late

    def _credit_ms(self, index: int, level: int) -> float:
        options = self.order[index].options
        if level == len(options) - 1:
            return 0.0
        if (index, level) not in self._credits:
            saved_ms = self._solo_ms(index, level) - self._solo_ms(index, -1)
            self._credits[index, level] = STILL_SAVED * saved_ms * self.setting.scale.mean_ms
        return self._credits[index, level]

    def _solo_ms(self, index: int, level: int) -> float:
        return solo_ms(self.order[index].options[level].load, self.setting.curve, self.setting.max_batch)


def _due_s(job: Job) -> float:
    return job.due_s
