"""What is expected to come to a worker, and so what a millisecond of its device is worth.

The highest rungs that all who are there can have leave no time for those who come next. Without knowing them, the best
is to give them the share of the device that those before them asked for:

    maximise   the sum of quality of all who come in a horizon, each at one rung or refused
    such that  their device time, in full batches, is the part of the horizon that the backlog leaves

The optimum of that relaxed program is a price: whoever makes more quality of a millisecond has it, whoever makes less
has not. There is one for each priority's lowest rungs, and then one for what is above them, higher priorities first.

All that is for work that commits the device (`Setting.commits`), which a text does not: it gives way after every token,
and may have all that there is until others come. And it is for a worker that has its device to itself. Of several that
share one, each knows what is asked of it alone: their prices made all of them give way for nobody.
"""

import bisect
import itertools
import math
import operator
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from headway.cost import Load
from headway.jobs import Job, Setting

_LOW, _NORMAL, _HIGH = 1, 2, 3  # as in the contract, and in `headway.jobs.Job`
_MOST, _FEWEST = 128, 8
"""So many arrivals are remembered at most; with fewer, nothing is expected."""
_SHORTEST, _LONGEST = 4.0, 8.0
"""Over how many horizons arrivals are counted: many that come at once are not yet a rate."""
_STALE = 0.25
"""After this share of a horizon without an arrival, what is expected is counted anew."""
_PATIENT = 4.0
"""Deadlines count as at most so many times the median one."""
_CALM = 0.5
"""The backlog that is as it should be, over the horizon: more of it leaves less for others, and less leaves more."""
_REFUSED_AT, _REFUSED_PER = 1.1, 1.5
"""Refusing is for what lowering cannot mend: by the estimate the lowest rungs may ask for a little more than there is,
but the backlog counts for more."""

_ALIKE = 1e-6
"""Worths that differ by less than this share are the same."""
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class Price:
    """What a ms must bring."""

    worth: float
    """Quality a calibrated ms."""
    share: float
    """Of those who bring just that much, so many have it."""

    def taken(self, worth: float, lot: float) -> bool:
        """Whether time goes to who brings so much of it; `lot`, from 0 to 1, decides among equals."""
        if worth == self.worth or abs(worth - self.worth) <= _ALIKE * self.worth:
            return lot < self.share
        return worth > self.worth


FREE, NOTHING = Price(-math.inf, 1.0), Price(math.inf, 0.0)
"""Of what there is enough of, and of what there is nothing of."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a request makes of the device's time, as calibrated, in full batches."""

    priority: int
    least_ms: float
    """For the lowest rung."""
    least_worth: float
    """Quality a ms of it."""
    more: tuple[tuple[float, float, int], ...]
    """(quality a ms, ms, the level that is reached): what rungs above it bring, the most for its time first."""

    def level(self, price: Price, lot: float, bottom: int) -> int:
        """The best level that brings the price for its time."""
        taken = itertools.takewhile(lambda step: price.taken(step[0], lot), self.more)
        return min((level for _, _, level in taken), default=bottom)


def offer_of(job: Job, setting: Setting) -> Offer:
    """Rungs that bring less for their time than a mixture of others (the concave hull) are left out."""
    least = (_device_ms(job.options[-1].load, setting), job.options[-1].rung.quality, len(job.options) - 1)
    hull = [least]
    for level in range(len(job.options) - 2, -1, -1):
        point = (_device_ms(job.options[level].load, setting), job.options[level].rung.quality, level)
        while len(hull) > 1 and _worth(hull[-2], hull[-1]) <= _worth(hull[-2], point):
            hull.pop()
        hull.append(point)
    more = tuple((_worth(one, next_), next_[0] - one[0], next_[2]) for one, next_ in itertools.pairwise(hull))
    return Offer(job.priority, least[0], least[1] / max(least[0], 1e-9), more)


def _worth(one: tuple[float, float, int], better: tuple[float, float, int]) -> float:
    return (better[1] - one[1]) / max(better[0] - one[0], 1e-9)


def _device_ms(load: Load, setting: Setting) -> float:
    full_ms = setting.curve.step(setting.max_batch, setting.max_batch).mean_ms
    return load.setup.mean_ms + load.steps_left * load.items * full_ms / setting.max_batch


@dataclass(frozen=True, slots=True)
class _Arrival:
    at_s: float
    horizon_s: float
    offer: Offer


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What one kind of demand would take of the device, by falling worth."""

    worths: tuple[float, ...]
    shares: tuple[float, ...]
    """Of the device's time, as calibrated, for all of at least that worth."""

    @property
    def share(self) -> float:
        return self.shares[-1] if self.shares else 0.0

    def price(self, room: float) -> Price:
        """The worth of what no longer fits in this share of the time."""
        if self.share <= room:
            return FREE
        if room <= 0:
            return NOTHING
        worth = self.worths[bisect.bisect_right(self.shares, room)]
        first = bisect.bisect_left(self.worths, -worth * (1 + _ALIKE), key=operator.neg)
        end = bisect.bisect_right(self.worths, -worth * (1 - _ALIKE), key=operator.neg)
        before = self.shares[first - 1] if first else 0.0
        return Price(worth, (room - before) / (self.shares[end - 1] - before))


@dataclass(frozen=True, slots=True)
class _Expected:
    """Arrivals as a rate."""

    counted_s: float
    horizon_s: float
    least: Mapping[int, _Wanted]
    """By priority."""
    more: Mapping[int, _Wanted]


@dataclass(frozen=True, slots=True)
class Prices:
    """By priority."""

    least: Mapping[int, Price]
    """To be kept at all, at the lowest rung."""
    more: Mapping[int, Price]
    """To get more than that."""


_ORDER = ((_HIGH, True), (_NORMAL, True), (_LOW, True), (_HIGH, False), (_NORMAL, False), (_LOW, False))
"""Who is served first, (priority, at its lowest rung). Whom nothing but a guess stands against is not refused for
somebody's higher rung, whatever the priorities: that is for the planner, which knows who is there."""


class Demand:
    """Learned from arrivals. `arrived` belongs to one thread; all else may be called from others meanwhile."""

    def __init__(self) -> None:
        self._arrivals: tuple[_Arrival, ...] = ()
        self._counted: tuple[_Arrival, ...] = ()
        self._expected: _Expected | None = None
        """What follows from `_counted`."""
        self._shared_s = -math.inf
        """When others on the device last had something to do."""

    def arrived(self, job: Job, setting: Setting) -> None:
        """Takes in a request, whatever becomes of it. Mutates what is expected."""
        arrival = _Arrival(setting.now_s, job.due_s - setting.now_s, offer_of(job, setting))
        self._arrivals = (*self._arrivals[-_MOST + 1 :], arrival)

    def affordable(self, jobs: Sequence[Job], setting: Setting) -> list[Job]:
        """The jobs without the rungs that leave too little time for those who are expected."""
        prices = self._prices(jobs, setting)
        if prices is None:
            return list(jobs)
        return [_without_dearer(job, prices.more[job.priority], setting) for job in jobs]

    def worth_keeping(self, admitted: Sequence[Job], job: Job, setting: Setting) -> bool:
        """Whether a new request brings as much for its time as those who are expected until it is due."""
        prices = self._prices(admitted, setting, job.due_s - setting.now_s)
        return prices is None or prices.least[job.priority].worth * (1 - _ALIKE) <= offer_of(job, setting).least_worth

    def _prices(self, jobs: Sequence[Job], setting: Setting, patience_s: float = 0.0) -> Prices | None:
        """None: nothing is expected, or others share the device.

        Who has more patience than the horizon has time for a longer backlog.
        """
        if setting.shared:
            self._shared_s = setting.now_s
        expected = self._expectation(setting.now_s) if setting.commits and not setting.shared else None
        if expected is None or setting.now_s - self._shared_s < expected.horizon_s:
            return None
        horizon_s = max(expected.horizon_s, patience_s)
        over = _backlog_ms(jobs, setting, horizon_s) / (1000 * horizon_s) - _CALM
        return _prices_for(expected, over, setting.scale.mean_ms)

    def _expectation(self, now_s: float) -> _Expected | None:
        """What is expected, counted anew where somebody came since, or nobody for long."""
        arrivals, expected = self._arrivals, self._expected
        stale = expected is not None and now_s - expected.counted_s > _STALE * expected.horizon_s
        if stale or arrivals is not self._counted:
            expected = _count(arrivals, now_s)
            self._counted, self._expected = arrivals, expected
        return expected


def _backlog_ms(jobs: Sequence[Job], setting: Setting, horizon_s: float) -> float:
    """Device time that is needed at least; of what has far more than a horizon left, the share that is due in one."""
    own_ms = sum(
        _device_ms(job.options[-1].load, setting) * _pressing(job.due_s - setting.now_s, horizon_s) for job in jobs
    )
    later_ms = sum(work_ms * _pressing(due_s - setting.now_s, horizon_s) for due_s, work_ms in setting.beside)
    return setting.busy_ms + own_ms * setting.scale.mean_ms + later_ms


def _pressing(left_s: float, horizon_s: float) -> float:
    return min(1.0, _PATIENT * horizon_s / max(left_s, 1e-3))


def _prices_for(expected: _Expected, over: float, slowness: float) -> Prices:
    """`over`: how much longer the backlog is than it should be, over the horizon."""
    used, enough, least, more = 0.0, True, dict[int, Price](), dict[int, Price]()
    for priority, lowest in _ORDER:
        share = _REFUSED_AT * (1 - _REFUSED_PER * over) if lowest else 1 - over
        wanted, prices = (expected.least, least) if lowest else (expected.more, more)
        prices[priority] = wanted[priority].price(share / slowness - used) if enough else NOTHING
        enough = prices[priority] == FREE
        used += wanted[priority].share
    return Prices(least, more)


def _count(arrivals: Sequence[_Arrival], now_s: float) -> _Expected | None:
    """What came lately, as shares of the device's time; None when that was too little to go by."""
    if len(arrivals) < _FEWEST:
        return None
    horizon_s = _horizon_s(arrivals)
    lately = [arrival for arrival in arrivals if now_s - arrival.at_s <= _LONGEST * horizon_s]
    if len(lately) < _FEWEST:
        return None
    full = len(lately) == _MOST
    span_s = max(_SHORTEST * horizon_s, now_s - lately[0].at_s if full else now_s - arrivals[0].at_s)
    span_ms = 1000 * min(span_s, _LONGEST * horizon_s)
    offers = {priority: list[Offer]() for priority in (_LOW, _NORMAL, _HIGH)}
    for arrival in lately:
        offers[arrival.offer.priority].append(arrival.offer)
    least = {key: _wanted([(one.least_worth, one.least_ms) for one in rows], span_ms) for key, rows in offers.items()}
    more = {
        key: _wanted([(worth, ms) for one in rows for worth, ms, _ in one.more], span_ms)
        for key, rows in offers.items()
    }
    return _Expected(now_s, horizon_s, least, more)


def _horizon_s(arrivals: Sequence[_Arrival]) -> float:
    """How long requests may take in the mean; a few that may take for ever count as patient ones."""
    middle_s = statistics.median(arrival.horizon_s for arrival in arrivals)
    return max(1e-3, statistics.fmean(min(arrival.horizon_s, _PATIENT * middle_s) for arrival in arrivals))


def _wanted(rows: list[tuple[float, float]], span_ms: float) -> _Wanted:
    rows.sort(reverse=True)
    shares = itertools.accumulate(work_ms / span_ms for _, work_ms in rows)
    return _Wanted(tuple(worth for worth, _ in rows), tuple(shares))


def _without_dearer(job: Job, price: Price, setting: Setting) -> Job:
    if price == FREE or len(job.options) == 1:
        return job
    level = offer_of(job, setting).level(price, job.key * _GOLDEN % 1.0, len(job.options) - 1)
    return replace(job, options=job.options[level:]) if level else job
