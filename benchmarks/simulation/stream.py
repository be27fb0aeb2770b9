"""Requests without end, made as they are needed: the same seed sends every policy the same."""

import heapq
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.experiment.arrivals import Arrival, Mix, Profile, arrivals, steady, times
from benchmarks.simulation.models import Model
from benchmarks.simulation.router import Request
from headway.requests import service_level

PIECE_S = 2.0
"""Arrivals are drawn for so long at a time."""
PREFIXES = 40
"""Different beginnings of prompts; the n-th is asked for half as often as the one before the last doubling of n."""
ONE_TENANT = (("everyone", 1.0),)


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked for, of each kind."""

    profile: Profile
    """Load over time; the last stretch goes on for ever."""
    priorities: tuple[tuple[str, float], ...] = (("high", 0.2), ("normal", 0.6), ("low", 0.2))
    tenants: tuple[tuple[str, float], ...] = ONE_TENANT
    """By share of the requests."""


def steady_demand(load: float) -> Demand:
    """One load for ever."""
    return Demand(steady(load, PIECE_S))


def requests(demand: Demand, rates: Mapping[Model, float], seed: int) -> Iterator[Request]:
    """Requests in the order in which they come; `rates`: requests a second at load 1.0, by kind."""
    streams = [_of_one_kind(demand, model, rate, f"{seed} {model.name}") for model, rate in rates.items()]
    merged = heapq.merge(*streams, key=lambda pair: pair[1].at_s)
    levels = {name: service_level(priority=name) for name, _ in demand.priorities}
    tenants = Shares(demand.tenants)
    for key, (model, arrival) in enumerate(merged, start=1):
        yield Request(
            key,
            model,
            arrival.items,
            levels[arrival.priority],
            arrival.priority,
            tenants.at(arrival.seed / 2**32),
            arrival.at_s,
            arrival.at_s + arrival.deadline_ms / 1000,
            _prefix(arrival.seed) if model.name == "text" else b"",
        )


def as_arrival(request: Request) -> Arrival:
    """The request as the experiments have it."""
    deadline_ms = (request.deadline_s - request.at_s) * 1000
    return Arrival(request.key, request.at_s, request.items, deadline_ms, deadline_ms, request.priority, request.key)


def _of_one_kind(demand: Demand, model: Model, rate: float, seed: str) -> Iterator[tuple[Model, Arrival]]:
    draw, mix = random.Random(seed), Mix(model.sizes, demand.priorities)
    for start_s, length_s, load in _pieces(demand.profile):
        at_s = times(((length_s, load),), rate, draw)
        for arrival in arrivals(at_s, mix, model.solo_ms, draw):
            yield model, replace(arrival, at_s=arrival.at_s + start_s)


def _pieces(profile: Profile) -> Iterator[tuple[float, float, float]]:
    """(start, length, load) of short pieces of the profile, then of its last stretch again and again."""
    start_s = 0.0
    for length_s, load in itertools.chain(profile, itertools.repeat(profile[-1])):
        left_s = length_s
        while left_s > 1e-9:
            piece_s = min(PIECE_S, left_s)
            yield start_s, piece_s, load
            start_s, left_s = start_s + piece_s, left_s - piece_s


class Shares:
    """Splits 0 to 1 by the shares of names."""

    def __init__(self, shares: Sequence[tuple[str, float]]) -> None:
        total = sum(share for _, share in shares)
        self._edges = list(itertools.accumulate(share / total for _, share in shares))
        self._names = [name for name, _ in shares]

    def at(self, place: float) -> str:
        """The name that a place between 0 and 1 belongs to."""
        return next(
            (name for name, edge in zip(self._names, self._edges, strict=True) if place < edge), self._names[-1]
        )


def _prefix(seed: int) -> bytes:
    """A few beginnings are asked for often, and many seldom."""
    place = (seed % 9973 + 1) / 9974
    return b"prompt %d" % int(PREFIXES**place)
