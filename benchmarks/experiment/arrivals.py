"""When requests come and what each asks for. Seeded: the same seed sends every policy the same requests."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LOADS = (0.3, 0.6, 0.9, 1.2, 1.5)
DEADLINE_FACTORS = (1.5, 3.0, 6.0)
"""Deadlines over the cost of the same request alone at the top rung, in equal shares."""
CALM, SPIKE = 0.3, 1.5
BURST, LULL = 2.5, 0.25
"""Load of a burst and of a lull over the mean load."""
STRETCH_S = 2.0
"""Mean length of a burst or a lull."""

Profile = Sequence[tuple[float, float]]
"""Stretches of (seconds, load), one after the other; inside each arrivals are Poisson."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request that is to be sent."""

    index: int
    at_s: float
    """From the start of the run."""
    items: int
    deadline_ms: float
    target_ms: float
    priority: str
    seed: int


@dataclass(frozen=True, slots=True)
class Mix:
    """What requests ask for; sizes in equal shares, priorities by weight."""

    sizes: tuple[int, ...]
    """Items of a request: images, frames or tokens."""
    priorities: tuple[tuple[str, float], ...] = (("normal", 1.0),)
    target_share: float = 1.0
    """Target over deadline."""

    @property
    def mean_items(self) -> float:
        return sum(self.sizes) / len(self.sizes)


def steady(load: float, seconds: float) -> Profile:
    """Poisson arrivals at one rate."""
    return ((seconds, load),)


def spike(seconds: float) -> Profile:
    """Calm, then a step to more than can be done, then calm again; each a third of the time."""
    return ((seconds / 3, CALM), (seconds / 3, SPIKE), (seconds / 3, CALM))


def bursty(load: float, seconds: float, draw: random.Random) -> Profile:
    """Bursts and lulls of random length by turns, as traces of real services have; `load` in the mean."""
    burst_share = (1 - LULL) / (BURST - LULL)
    stretches, left_s, bursting = list[tuple[float, float]](), seconds, False
    while left_s > 0:
        mean_s = 2 * STRETCH_S * (burst_share if bursting else 1 - burst_share)
        length_s = min(left_s, draw.expovariate(1 / mean_s))
        stretches.append((length_s, load * (BURST if bursting else LULL)))
        left_s, bursting = left_s - length_s, not bursting
    return stretches


def times(profile: Profile, capacity_per_s: float, draw: random.Random) -> list[float]:
    """Arrival times in s of a Poisson process whose rate is `capacity_per_s` times the load of each stretch."""
    found, start_s = list[float](), 0.0
    for length_s, load in profile:
        at_s = start_s + draw.expovariate(capacity_per_s * load) if load > 0 else start_s + length_s
        while at_s < start_s + length_s:
            found.append(at_s)
            at_s += draw.expovariate(capacity_per_s * load)
        start_s += length_s
    return found


def arrivals(at_s: Sequence[float], mix: Mix, solo_ms: Callable[[int], float], draw: random.Random) -> list[Arrival]:
    """A request for each time. `solo_ms` says what so many items cost alone at the top rung."""
    names, weights = zip(*mix.priorities, strict=True)
    found = []
    for index, time_s in enumerate(at_s):
        items = draw.choice(mix.sizes)
        deadline_ms = draw.choice(DEADLINE_FACTORS) * solo_ms(items)
        (priority,) = draw.choices(names, weights)
        seed = draw.getrandbits(32)
        found.append(Arrival(index, time_s, items, deadline_ms, mix.target_share * deadline_ms, priority, seed))
    return found
