"""What a path needs of a worker, and what it gets: said before its first frame is begun. Pure but for `Ahead`."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter

from headway.cost import Cost
from headway.errors import BudgetTooSmall, Shed
from headway.planning import Job, Setting
from headway.quality import Wish
from headway.v1 import common_pb2
from services.splat_worker.path import Timetable

Demand = Sequence[tuple[float, float]]
"""Device work that is to come: (due, monotonic s; ms)."""
_ROWS = 4


class Ahead:
    """The frames of admitted paths that are not begun yet, at their lowest rungs: kept free when others are admitted.

    Written by the event loop, read by the engine's thread: both see one whole tuple.
    """

    def __init__(self) -> None:
        self._by_path: dict[int, Demand] = {}
        self.rows: tuple[tuple[float, float], ...] = ()
        """As calibrated."""

    def keep(self, path: int, rows: Demand) -> None:
        """Replaces what is kept for a path; an empty `rows` ends it. Mutates."""
        self._by_path.pop(path, None)
        if rows:
            self._by_path[path] = rows
        self.rows = tuple(row for rows in self._by_path.values() for row in rows)

    def scaled(self, factor: float) -> Demand:
        """As the host is now."""
        return [(due_s, ms * factor) for due_s, ms in self.rows] if self.rows else ()


def later_demand(timetable: Timetable, begun: int, frame_ms: float) -> list[tuple[float, float]]:
    """The frames of a path that are not begun, in a few rows: each row's frames are due with its last one."""
    left = timetable.count - begun
    edges = sorted({begun + round(left * part / _ROWS) for part in range(_ROWS + 1)})
    return [(timetable.frame_due_s(end - 1), (end - start) * frame_ms) for start, end in pairwise(edges)]


def check_path(job: Job, timetable: Timetable, setting: Setting, others: Demand, *, reserve_ms: float) -> None:
    """Raises what speaks against admitting a path whose first frame is `job`; its frames all cost alike.

    `BudgetTooSmall`: without a rate, all frames at the lowest rung take an idle worker longer than the budget. `Shed`:
    with `others` (all that is admitted, at its lowest) something would be late that neither is late now, nor would be
    with the path alone: a rate above what the worker can do costs the path its own frames and nobody else anything.
    """
    lowest = job.options[-1].load.setup
    budget_ms = (timetable.due_s - setting.now_s) * 1000
    whole = lowest.times(timetable.count).scaled(setting.scale).quantile_ms(setting.admission_quantile)
    if timetable.frames_per_second is None and whole + setting.overhead_ms > budget_ms:
        least_ms = whole + setting.overhead_ms + reserve_ms
        raise BudgetTooSmall(budget_ms=budget_ms + reserve_ms, least_budget_ms=least_ms)
    own = later_demand(timetable, 0, lowest.mean_ms * setting.scale.mean_ms)
    over_ms = _over_ms(own, others, setting, whole)
    if over_ms > 0:
        why = f"refused under load: its frames would be {over_ms:.0f} ms too much for what is admitted"
        raise Shed(why, retry_after_s=over_ms / 1000)


def _over_ms(own: Demand, others: Demand, setting: Setting, whole_ms: float) -> float:
    """How much more than fits is due by any time by which each of both, alone, would be done.

    What is kept free for answers that others lose does not count as room; `whole_ms`: what the path takes alone.
    """
    most_ms, own_ms, others_ms = 0.0, 0.0, 0.0
    rows = sorted([*((due_s, ms, 0.0) for due_s, ms in own), *((due_s, 0.0, ms) for due_s, ms in others)])
    for due_s, due in groupby(rows, key=itemgetter(0)):
        for _, mine_ms, theirs_ms in due:
            own_ms, others_ms = own_ms + mine_ms, others_ms + theirs_ms
        room_ms = (due_s - setting.now_s) * 1000
        if 0 < own_ms <= room_ms and others_ms <= room_ms:
            most_ms = max(most_ms, own_ms + others_ms - room_ms + setting.failover_ms(due_s, whole_ms))
    return most_ms


@dataclass(frozen=True, slots=True)
class Pace:
    """The rung that a whole path is expected to keep, and what it takes at it."""

    level: int
    """Index into the first frame's options."""
    finish: Cost
    """From now."""

    @classmethod
    def of(cls, job: Job, timetable: Timetable, setting: Setting, others_ms: float) -> "Pace":
        """The best rung at which all frames keep their targets behind `others_ms` of other work, else the lowest."""
        room_ms = (timetable.frame_target_s(timetable.count - 1) - setting.now_s) * 1000 - setting.overhead_ms
        frames = [option.load.setup.times(timetable.count).scaled(setting.scale) for option in job.options]
        finish = [cost + Cost(others_ms) for cost in frames]
        fits = (level for level, cost in enumerate(finish) if cost.quantile_ms(setting.rung_quantile) <= room_ms)
        level = next(fits, len(finish) - 1)
        return cls(level, finish[level])


def pace_reason(level: int, alone: int, job: Job, wish: Wish) -> common_pb2.RungReason:
    """Why a path keeps this rung; `alone`: the level that it would keep on an idle worker."""
    if wish.exact:
        return common_pb2.RUNG_REASON_EXACT
    if level and wish.floored and level == len(job.options) - 1:
        return common_pb2.RUNG_REASON_FLOOR
    return common_pb2.RUNG_REASON_QUEUE_PRESSURE if alone < level else common_pb2.RUNG_REASON_BEST_FIT
