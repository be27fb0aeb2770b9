"""Looks for the highest rungs with which a queue keeps its times. Pure.

Of the plans that keep every deadline, the best has the most quality for high priority, then normal, then low. With
shared steps, finding it is a knapsack over a simulation; so this estimates what each lowering saves, lowers in the
order of giving way until the estimates say that all are in time, checks by playing the queue forward, and goes on with
what is still late. Then it takes back what was lowered too much, the other way round, and checks that too.

Playing the queue takes about a microsecond a job, all else less: a plan plays it a handful of times, and short queues,
where that costs nothing, a few dozen times more to look closer.
"""

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from headway.jobs import Option
from headway.queue_model import QueueModel

_ROUNDS = 4
"""How often what is still late is lowered by estimates that are halved each time, before all gives way."""
_RAISES = 3
"""How often estimates are asked what may be taken back."""
_CLOSER = 256
"""Jobs that may be played to look closer, one change at a time: so many queues of one job, half as many of two."""
_CLOSER_AGAIN = 64
"""The same where nothing commits: all is planned anew after every token, and what is missed now is found then."""
_EQUALS = 3
"""So many jobs are tried, one at a time, to give way for one of the same priority that has more to gain."""
HOPELESS = 0.01
"""A job that would be late with all but this chance, whatever gives way for it, is waited for no more."""
_STEPS_OF_EQUALS = 32
"""Lowerings whose quality lost a ms differs by less than a factor of two to the power of 1/32 count as equal."""


class Move(NamedTuple):
    """One job lowered by one rung. Sorts by priority, then by quality lost for the time saved.

    Among equals the least lowered job comes first: jobs in one batch share their steps, so that lowering one of them
    to the bottom saves little.
    """

    priority: int
    lost_per_ms: int
    """On a scale of logarithms."""
    level: int
    """The level that is given up."""
    place: int
    """The job's place in the queue."""
    saved_ms: float
    """An estimate: as if all steps were shared evenly."""


@dataclass(frozen=True, slots=True)
class Times:
    """What is asked of each job of a queue, by place."""

    limits: list[float]
    """By target where it can be met, else by deadline: see `QueueModel`."""
    forced: int
    """The jobs before this place give all they can, for one of them that is in danger even so."""
    ignored: frozenset[int]
    """Jobs that nothing brings in; nobody gives way for them."""
    overdue: frozenset[int] = frozenset()
    """Jobs that miss their target behind others whatever is lowered: they are over as soon as they can be, for those
    behind them. Else a queue that is once too long for its targets would be kept as long by the quality that deadlines
    still bear, and never come back.
    """


def best_levels(model: QueueModel) -> list[int]:
    """The level of each job, by place in `model.order`."""
    levels = [0] * len(model.order)
    if max(model.lateness_ms(levels, model.by_target), default=0.0) <= 0:
        return levels
    return _Search(model).run()


def times_of(model: QueueModel) -> Times:
    """What can be asked: what holds when every job is at its lowest rung."""
    bottom, quantile = model.bottom, model.setting.admission_quantile
    by_target = model.lateness_ms(bottom, model.by_target)
    if max(by_target, default=0.0) <= 0:
        return Times(model.by_target, 0, frozenset())
    by_due = model.lateness_ms(bottom, model.by_due)
    limits = [
        target if late_ms <= 0 else due
        for late_ms, target, due in zip(by_target, model.by_target, model.by_due, strict=True)
    ]
    lost = [place for place, late_ms in enumerate(by_due) if late_ms > 0]
    surely = model.due_lateness_ms(bottom, min(HOPELESS, 1 - quantile)) if lost else []
    ignored = frozenset(place for place in lost if surely[place] > 0)
    forced = max((place + 1 for place in lost if place not in ignored), default=0)
    crowded = len(model.order) > 1 or bool(model.setting.beside)
    overdue = frozenset(place for place, late_ms in enumerate(by_target) if late_ms > 0 and crowded)
    return Times(limits, forced, ignored | frozenset(lost), overdue)


class _Search:
    """One search over one queue."""

    def __init__(self, model: QueueModel) -> None:
        self._model, self._times = model, times_of(model)
        setting, order = model.setting, model.order
        items = min(setting.max_batch, sum(job.options[0].load.items for job in order))
        self._item_ms = setting.curve.step(items, setting.max_batch).mean_ms / items
        self._factor = setting.scale.mean_ms
        self._moves: list[list[Move] | None] = [None] * len(order)

    def run(self) -> list[int]:
        """The best levels found."""
        levels = [0] * len(self._model.order)
        kept_low = {*range(self._times.forced), *self._times.ignored, *self._times.overdue}
        if len(kept_low) == len(levels):
            return list(self._model.bottom)
        for place in kept_low:
            levels[place] = self._model.bottom[place]
        levels, late = self._lower(levels, self._late(levels))
        if max(late) > 0:
            return levels
        return self._look_closer(self._raise_many(levels, late))

    def _late(self, levels: Sequence[int]) -> list[float]:
        """Lateness of the jobs that give way is for; the others are in time whatever comes."""
        late = self._model.lateness_ms(levels, self._times.limits)
        for place in self._times.ignored:
            late[place] = -math.inf
        return late

    # --- down

    def _lower(self, levels: list[int], late: list[float]) -> tuple[list[int], list[float]]:
        """Levels with which nobody is late; all at the bottom when no others were found."""
        trust = 1.0
        for _ in range(_ROUNDS):
            if max(late, default=0.0) <= 0:
                return levels, late
            levels = self._give_way(levels, late, trust)
            late, trust = self._late(levels), trust / 2
        if max(late, default=0.0) <= 0:
            return levels, late
        last = max(place for place, late_ms in enumerate(late) if late_ms > 0)
        levels = [*self._model.bottom[: last + 1], *levels[last + 1 :]]
        late = self._late(levels)
        if max(late) <= 0:
            return levels, late
        return list(self._model.bottom), self._late(self._model.bottom)

    def _give_way(self, levels: Sequence[int], late: Sequence[float], trust: float) -> list[int]:
        """Lowers, for each late job, jobs up to it until estimates times `trust` say that it is in time."""
        lowered, saved_ms, open_moves = list(levels), 0.0, list[Move]()
        for place, late_ms in enumerate(late):
            self._open(open_moves, place, lowered[place])
            while late_ms > saved_ms and open_moves:
                move = heapq.heappop(open_moves)
                lowered[move.place] += 1
                saved_ms += move.saved_ms * trust
                self._open(open_moves, move.place, lowered[move.place])
        return lowered

    def _open(self, moves: list[Move], place: int, level: int) -> None:
        if level < self._model.bottom[place]:
            heapq.heappush(moves, self._move(place, level))

    def _move(self, place: int, level: int) -> Move:
        """The lowering of a job from `level`."""
        moves = self._moves[place]
        if moves is None:
            moves = self._moves[place] = self._moves_of(place)
        return moves[level]

    def _moves_of(self, place: int) -> list[Move]:
        """A job's lowerings from the top; none is offered before the one above it, so none is cheaper than that."""
        job = self._model.order[place]
        times_ms = [self._shared_ms(option) for option in job.options]
        moves, dearest = list[Move](), -math.inf
        for level, (above, below) in enumerate(itertools.pairwise(job.options)):
            saved_ms = max(times_ms[level] - times_ms[level + 1], 1e-6)
            lost = max(above.rung.quality - below.rung.quality, 1e-9) / saved_ms
            dearest = max(dearest, lost)
            moves.append(Move(job.priority, round(math.log2(dearest) * _STEPS_OF_EQUALS), level, place, saved_ms))
        return moves

    def _shared_ms(self, option: Option) -> float:
        """Device time of a load whose steps are shared, now."""
        load = option.load
        return self._factor * (load.setup.mean_ms + load.steps_left * load.items * self._item_ms)

    # --- up

    def _raise_many(self, levels: list[int], late: list[float]) -> list[int]:
        """Takes back what estimates say was lowered too much; halves what it takes back when that proves too much."""
        taken = self._spare(levels, late)
        for _ in range(_RAISES):
            if not taken:
                break
            raised = list(levels)
            for move in taken:
                raised[move.place] = move.level
            late_then = self._late(raised)
            if max(late_then) <= 0:
                levels, late = raised, late_then
                taken = self._spare(levels, late)
            else:
                taken = taken[: len(taken) // 2]
        return levels

    def _spare(self, levels: Sequence[int], late: Sequence[float]) -> list[Move]:
        """Lowerings that the slack behind them bears to take back, the most valuable first."""
        room_ms, least = [0.0] * len(late), math.inf
        for place in range(len(late) - 1, -1, -1):
            least = min(least, -late[place])
            room_ms[place] = least
        used_ms, taken = 0.0, list[Move]()
        for move in self._taken_back(levels):
            if used_ms + move.saved_ms <= room_ms[move.place]:
                used_ms += move.saved_ms
                taken.append(move)
        return taken

    def _taken_back(self, levels: Sequence[int]) -> list[Move]:
        """The last lowering of each job that may be raised, the last to give way first."""
        kept_low = self._times.ignored | self._times.overdue
        free = (place for place in range(self._times.forced, len(levels)) if levels[place] and place not in kept_low)
        return sorted((self._move(place, levels[place] - 1) for place in free), reverse=True)

    def _look_closer(self, levels: list[int]) -> list[int]:
        """Takes back one lowering at a time, as far as the queue's length leaves time to try."""
        closer = _CLOSER if self._model.setting.commits else _CLOSER_AGAIN
        tries, failed = closer // len(levels), set[Move]()
        while tries > 0:
            move = next((move for move in self._taken_back(levels) if move not in failed), None)
            if move is None:
                return levels
            failed.add(move)  # unless it comes to be taken back, and is no move to take back any more
            for raised in self._raised(move, levels):
                tries -= 1
                late = self._late(raised)
                if max(late) <= 0:
                    gave_way = sum(raised) > sum(levels)
                    levels = self._raise_many(raised, late) if gave_way else raised
                    break
                if tries <= 0:
                    break
        return levels

    def _raised(self, move: Move, levels: Sequence[int]) -> Iterator[list[int]]:
        """Ways to take back a lowering: as it is; with lower priorities at the bottom; with less lost by an equal."""
        order, bottom = self._model.order, self._model.bottom
        raised = list(levels)
        raised[move.place] = move.level
        yield raised
        lower = [place for place, job in enumerate(order) if job.priority < move.priority]
        if any(levels[place] < bottom[place] for place in lower):
            yield [bottom[place] if place in lower else level for place, level in enumerate(raised)]
        equals = [
            (self._lost(place, level), place)
            for place, level in enumerate(levels)
            if order[place].priority == move.priority and place != move.place and level < bottom[place]
        ]
        for lost, place in sorted(equals)[:_EQUALS]:
            if lost < self._lost(move.place, move.level) - 1e-9:
                yield [level + (other == place) for other, level in enumerate(raised)]

    def _lost(self, place: int, level: int) -> float:
        options = self._model.order[place].options
        return options[level].rung.quality - options[level + 1].rung.quality
