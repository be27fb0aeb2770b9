"""What the worker can do on this machine: a request alone at the top rung, and each rung with batching."""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.experiment.arrivals import Arrival, Mix
from benchmarks.experiment.bound import Window
from benchmarks.experiment.generator import Send, ask, closed_loop, unhurried
from headway.client import AsyncHeadway
from headway.requests import service_level

IN_FLIGHT = 16
WARM_S = 1.0
WINDOWS = 3
MOST_WINDOW_S = 20.0


@dataclass(frozen=True, slots=True)
class Effort:
    """How long capacity is measured."""

    solo_repeats: int = 15
    window_s: float = 3.0


@dataclass(frozen=True, slots=True)
class Capacity:
    """Measured; the same for all policies."""

    solo: tuple[tuple[int, float], ...]
    """(items, ms) of a request alone at the top rung, from sending to the whole answer; sizes rising."""
    items_per_s: tuple[tuple[str, float], ...]
    """(rung, items a second) with batching, the median of the windows; best rung first."""
    best_items_per_s: tuple[tuple[str, float], ...]
    """The same, the best of the windows: no schedule should be thought to be quicker."""
    qualities: tuple[tuple[str, float], ...]

    def solo_ms(self, items: int) -> float:
        sizes, costs_ms = zip(*self.solo, strict=True)
        return float(np.interp(items, sizes, costs_ms))

    def requests_per_s(self, mix: Mix) -> float:
        """Load 1.0: the rate that the cheapest rung sustains."""
        return self.items_per_s[-1][1] / mix.mean_items

    def window(self, arrival: Arrival, speed: float = 1.0) -> Window:
        """A request as the bound sees it, on a host that is so many times as quick as when this was measured."""
        rates = [rate * speed for _, rate in self.best_items_per_s]
        options = tuple(
            (quality, arrival.items / rate) for (_, quality), rate in zip(self.qualities, rates, strict=True)
        )
        return Window(arrival.at_s, arrival.at_s + arrival.deadline_ms / 1000, options)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


async def measure(
    send: Send, client: AsyncHeadway, mix: Mix, rungs: Sequence[tuple[str, float]], effort: Effort
) -> Capacity:
    """Takes a few seconds for each rung; the worker must be otherwise at rest."""
    solo = [(items, await _solo_ms(send, client, items, rungs[0][0], effort)) for items in sorted(set(mix.sizes))]
    rates = [(label, await _rates(send, client, mix, label, effort)) for label, _ in rungs]
    return Capacity(
        tuple(solo),
        tuple((label, statistics.median(found)) for label, found in rates),
        tuple((label, max(found)) for label, found in rates),
        tuple(rungs),
    )


async def _solo_ms(send: Send, client: AsyncHeadway, items: int, rung: str, effort: Effort) -> float:
    level, elapsed_ms = service_level(exact=rung), list[float]()
    for seed in range(2 + effort.solo_repeats):
        record = await ask(send, client, unhurried(seed, items), level)
        if not record.answered:
            raise RuntimeError(f"a request of {items} alone was answered {record.error}")
        elapsed_ms.append(record.elapsed_ms)
    return statistics.median(elapsed_ms[2:])


async def _rates(send: Send, client: AsyncHeadway, mix: Mix, rung: str, effort: Effort) -> list[float]:
    """Items a second in each of a few windows; they are made longer while a worker answers too seldom for them."""
    window_s = effort.window_s
    while True:
        seconds = WARM_S + WINDOWS * window_s
        ended = await closed_loop(send, client, mix.sizes, rung, in_flight=IN_FLIGHT, seconds=seconds)
        edges = [WARM_S + number * window_s for number in range(WINDOWS + 1)]
        try:
            return [rate_between(ended, low, high) for low, high in itertools.pairwise(edges)]
        except TooFewAnswers:
            if window_s > MOST_WINDOW_S:
                raise
            window_s *= 2


class TooFewAnswers(RuntimeError):
    """A window is too short for how seldom the worker answers."""


def rate_between(ended: Sequence[tuple[float, int]], low_s: float, high_s: float) -> float:
    """Items a second from the last answer before `low_s` to the last before `high_s`: answers come in batches.

    Raises TooFewAnswers where those are the same.
    """
    first_s = max((at_s for at_s, _ in ended if at_s < low_s), default=0.0)
    last_s = max((at_s for at_s, _ in ended if at_s < high_s), default=0.0)
    if last_s <= first_s:
        raise TooFewAnswers(f"no answer between {low_s:g} and {high_s:g} s: measure longer")
    return sum(items for at_s, items in ended if first_s < at_s <= last_s) / (last_s - first_s)
