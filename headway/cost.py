"""What work costs: distributions of device milliseconds, learned online, and when a queue would finish.

Means and variances add; a quantile is taken once, at the end. `predict_finish` is pure and shared by the router and the
workers: it plays the engines' loop forward, a batch of steps at a time.
"""

import bisect
import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import NormalDist

from headway.v1 import worker_pb2


@dataclass(frozen=True, slots=True)
class Cost:
    """Predicted milliseconds of device time."""

    mean_ms: float
    var_ms2: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.mean_ms + other.mean_ms, self.var_ms2 + other.var_ms2)

    def times(self, count: int) -> "Cost":
        """The cost of `count` independent repetitions."""
        return Cost(self.mean_ms * count, self.var_ms2 * count)

    def scaled(self, scale: "Cost") -> "Cost":
        """The cost times an independent factor, given as a plain number's mean and variance: see `LearnedScale`.

        Sum first, scale then: the factor is common to all that is summed.
        """
        mean_ms = self.mean_ms * scale.mean_ms
        second = (self.var_ms2 + self.mean_ms**2) * (scale.var_ms2 + scale.mean_ms**2)
        return Cost(mean_ms, max(0.0, second - mean_ms * mean_ms))

    def quantile_ms(self, quantile: float) -> float:
        """The time that is enough with this probability, by a normal approximation; never below 0."""
        return max(0.0, self.mean_ms + z_of(quantile) * math.sqrt(self.var_ms2))


ZERO = Cost(0.0)


@lru_cache(maxsize=64)
def z_of(quantile: float) -> float:
    """How many standard deviations above the mean a quantile of the normal distribution lies."""
    return NormalDist().inv_cdf(quantile)


@dataclass(frozen=True, slots=True)
class StepCurve:
    """The cost of one step by batch size: linear between the measured sizes, and beyond the last by its slope.

    `points` are (items, cost), sizes rising from at least 1. Raises ValueError when they are not.
    """

    points: tuple[tuple[int, Cost], ...]
    _known: dict[int, Cost] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What was asked for, by items up to the last size: the planner asks for the same again and again."""

    def __post_init__(self) -> None:
        sizes = [size for size, _ in self.points]
        if not sizes or sizes[0] < 1 or any(a >= b for a, b in itertools.pairwise(sizes)):
            raise ValueError(f"a step curve needs rising batch sizes from 1 on, not {sizes}")

    def at(self, items: int) -> Cost:
        """The cost of a step over `items`; below the first size its cost."""
        known = self._known.get(items)
        if known is None:
            known = self._between(items)
            if items <= self.points[-1][0]:
                self._known[items] = known
        return known

    def _between(self, items: int) -> Cost:
        if len(self.points) == 1 or items <= self.points[0][0]:
            return self.points[0][1]
        right = min(bisect.bisect_left(self.points, items, key=_size), len(self.points) - 1)
        (low, below), (high, above) = self.points[right - 1], self.points[right]
        share = (items - low) / (high - low)
        mean_ms = below.mean_ms + share * (above.mean_ms - below.mean_ms)
        var_ms2 = below.var_ms2 + share * (above.var_ms2 - below.var_ms2)
        return Cost(max(mean_ms, below.mean_ms), max(var_ms2, 0.0))

    def step(self, items: int, max_batch: int) -> Cost:
        """The cost of one step over `items`; more than `max_batch`, and than was measured, take several passes."""
        if items > max_batch and items > self.points[-1][0]:
            return self.step(max_batch, max_batch).times(math.ceil(items / max_batch))
        return self.at(items)

    def scaled(self, scale: Cost) -> "StepCurve":
        """Every cost times a factor: see `Cost.scaled`."""
        return StepCurve(tuple((size, cost.scaled(scale)) for size, cost in self.points))

    def to_proto(self, asset_hash: str) -> list[worker_pb2.StepCost]:
        """The curve as `WorkerState` carries it."""
        return [
            worker_pb2.StepCost(asset_hash=asset_hash, batch=size, mean_ms=cost.mean_ms, var_ms2=cost.var_ms2)
            for size, cost in self.points
        ]


def _size(point: tuple[int, Cost]) -> int:
    return point[0]


class LearnedScale:
    """Learns online how much slower or faster steps are than they were calibrated.

    The factor is common to all steps ahead: a busy neighbour slows every one of them. So its mean follows actual over
    predicted time, and its variance is that of a short average around a long one; what differs from step to step
    averages out and is in the steps' own variance. The variance rises at once and falls slowly: a calm spell says
    little about the next one. A single step counts as at most `MOST` times slower, so that one stall of the machine
    does not close the worker.
    """

    MOST = 8.0
    SHORT, LONG = 0.1, 0.02
    """Weights of the newest step in the two averages."""
    RISE, FALL = 0.1, 0.005
    """Weights of the newest step in the variance, where it is more than that and where it is less."""

    def __init__(self) -> None:
        self._short = self._long = 1.0
        self._var = 0.0

    def observe(self, *, predicted_ms: float, actual_ms: float) -> None:
        """Takes in one step. Mutates the scale; ignores steps without a prediction."""
        if predicted_ms <= 0:
            return
        ratio = min(actual_ms / predicted_ms, self.MOST)
        self._short += self.SHORT * (ratio - self._short)
        self._long += self.LONG * (ratio - self._long)
        apart = (self._short - self._long) ** 2 - self._var
        self._var += (self.RISE if apart > 0 else self.FALL) * apart

    def settle(self, ratio: float) -> None:
        """Takes over what a worker at rest has measured: see `headway.engine.Pulse`. Mutates the scale."""
        self._short = self._long = min(ratio, self.MOST)
        self._var /= 2

    @property
    def value(self) -> Cost:
        """The factor's mean and variance."""
        return Cost(self._short, self._var)


class LearnedStall:
    """Learns online how much longer single steps take than they should at most: the longest lately, soon forgotten.

    A normal distribution knows nothing of a step in a thousand that the machine holds up for many times its length.
    What is admitted behind others keeps that much time free, which moves answers forward and costs no throughput.
    """

    MOST_MS = 100.0
    HALF_LIFE_STEPS = 500

    def __init__(self) -> None:
        self._longest_ms = 0.0

    def observe(self, *, most_ms: float, actual_ms: float) -> None:
        """Takes in one step, and what it was to take at most at the host's present speed. Mutates the estimate."""
        self._longest_ms *= 0.5 ** (1 / self.HALF_LIFE_STEPS)
        self._longest_ms = max(self._longest_ms, min(actual_ms - most_ms, self.MOST_MS))

    @property
    def value_ms(self) -> float:
        """Time to keep free."""
        return self._longest_ms


ONE = Cost(1.0)
"""The factor of a host that is as fast as it was calibrated."""


@dataclass(frozen=True, slots=True)
class Load:
    """Work that is still to do for one request.

    `setup` is device time before its first step (prefill, or a frame's whole cost); then come `steps_left` steps over
    `items` items each, which share a batch with other requests.
    """

    due_s: float
    items: int
    steps_left: int
    setup: Cost = ZERO


Foreign = Sequence[tuple[float, float]]
"""Other workers' admitted work on the same device: (due, monotonic s; remaining device ms, at least)."""


def predict_finish(loads: Sequence[Load], curve: StepCurve, max_batch: int, foreign: Foreign = ()) -> list[Cost]:
    """When each load would finish, from now, in the order given (the order in which the engine prefers them).

    Foreign work that is due earlier than a load goes before it. Pure; O(n log n).
    """
    finish = [Cost(mean_ms, var_ms2) for mean_ms, var_ms2 in zip(*play(loads, curve, max_batch), strict=True)]
    if not foreign:
        return finish
    return [cost + Cost(ahead_ms(load.due_s, foreign)) for load, cost in zip(loads, finish, strict=True)]


def play(loads: Sequence[Load], curve: StepCurve, max_batch: int) -> tuple[list[float], list[float]]:
    """Mean and variance of each load's finish: the engine's loop, played forward a run of equal steps at a time.

    Each step takes the longest run of loads from the front whose items fit in `max_batch`; a load larger than that goes
    alone, in several passes. Plain numbers, because this is the planner's inner loop. Pure; O(n log n).
    """
    if max_batch == 1:
        return _play_in_turn(loads, curve)
    means, variances = [0.0] * len(loads), [0.0] * len(loads)
    mean_ms, var_ms2, played, items = 0.0, 0.0, 0, 0
    ends: list[int] = []  # a heap of the steps after which loads are done
    done_at: dict[int, list[int]] = {}  # indexes of those loads
    for index, load in enumerate(loads):
        size = load.items
        while ends and items + size > max_batch:
            end = heapq.heappop(ends)
            if end > played:
                step = curve.step(items, max_batch)
                mean_ms, var_ms2 = mean_ms + (end - played) * step.mean_ms, var_ms2 + (end - played) * step.var_ms2
                played = end
            for each in done_at.pop(end):
                means[each], variances[each] = mean_ms, var_ms2
                items -= loads[each].items
        setup = load.setup
        mean_ms, var_ms2, items = mean_ms + setup.mean_ms, var_ms2 + setup.var_ms2, items + size
        end = played + load.steps_left
        if end in done_at:
            done_at[end].append(index)
        else:
            done_at[end] = [index]
            heapq.heappush(ends, end)
    for end in sorted(ends):
        if end > played:
            step = curve.step(items, max_batch)
            mean_ms, var_ms2 = mean_ms + (end - played) * step.mean_ms, var_ms2 + (end - played) * step.var_ms2
            played = end
        for each in done_at[end]:
            means[each], variances[each] = mean_ms, var_ms2
            items -= loads[each].items
    return means, variances


def _play_in_turn(loads: Sequence[Load], curve: StepCurve) -> tuple[list[float], list[float]]:
    """As `play`, of loads that never share a step."""
    means, variances, mean_ms, var_ms2 = list[float](), list[float](), 0.0, 0.0
    for load in loads:
        mean_ms, var_ms2 = mean_ms + load.setup.mean_ms, var_ms2 + load.setup.var_ms2
        if load.steps_left:
            step = curve.step(load.items, 1)
            mean_ms, var_ms2 = mean_ms + load.steps_left * step.mean_ms, var_ms2 + load.steps_left * step.var_ms2
        means.append(mean_ms)
        variances.append(var_ms2)
    return means, variances


def solo_ms(load: Load, curve: StepCurve, max_batch: int) -> float:
    """Mean device time of one load alone, as `predict_finish` has it."""
    return load.setup.mean_ms + load.steps_left * curve.step(load.items, max_batch).mean_ms


def ahead_ms(due_s: float, foreign: Foreign) -> float:
    """Foreign work that is due earlier than `due_s`."""
    return sum(work_ms for other_due_s, work_ms in foreign if other_due_s < due_s)
