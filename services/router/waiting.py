"""Requests that no worker would promise now, but that could still be answered in time (DESIGN, decision 1).

A worker promises what it will keep in 999 of 1,000 cases. What it would most likely keep, but cannot promise, waits
here and is asked for again when more is known. It leaves at once when even the likely finish comes too late.

Higher priorities go first; inside one, the tenant that got the least for its weight lately; inside a tenant, what is
due first.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from headway.deadline import Clock
from headway.errors import HeadwayError
from headway.v1 import common_pb2, errors_pb2
from services.router.fairness import Shares
from services.router.placement import Placement

_PAUSE_S = (0.01, 0.25)
"""Between two times that a request is asked for: no less, and no more than reports take to come or `_PATIENCE` says."""
_PATIENCE = 1 / 8
"""Of the time that a request has left: asking for all of them every moment would cost those who are served."""
_LATER = {errors_pb2.ERROR_REASON_SHED, errors_pb2.ERROR_REASON_TOO_MANY_CALLS}


def spare_s(placements: Sequence[Placement], due_s: float, now_s: float) -> float | None:
    """How long a request may wait and still be answered in time, if all goes as expected; None when it is hopeless."""
    finish_s = min((placement.finish.mean_ms for placement in placements), default=float("inf")) / 1000
    left_s = due_s - now_s - finish_s
    return left_s if left_s > 0 else None


@dataclass(slots=True, eq=False)
class Place:
    """One request's place in the queue."""

    kind: common_pb2.Kind
    order: tuple[int, float]
    """The most urgent of a tenant is the least: higher priorities, then those due first."""
    tenant: str = ""
    ready_s: float = 0.0
    """When to ask again."""
    called: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it may be its turn, or it has lost its place."""


class WaitingRoom:
    """Of each kind at most `most` requests wait; of those that are ready the first in order asks, one at a time."""

    def __init__(self, most: int, shares: Shares, clock: Clock) -> None:
        self._most, self._shares, self._clock = most, shares, clock
        self._places: list[Place] = []
        self._asking: dict[common_pb2.Kind, Place] = {}

    def count(self, kind: common_pb2.Kind) -> int:
        """How many requests of a kind wait."""
        return sum(place.kind == kind for place in self._places)

    def enter(self, place: Place) -> None:
        """Takes a place, until `leave`. Where there are too many, one of the lowest priority loses its own.

        That is the last one of the tenant that has the most places for its weight. Mutates the room.
        """
        self._places.append(place)
        if self.count(place.kind) > self._most:
            self.leave(self._last(place.kind))

    def leave(self, place: Place) -> None:
        """Gives a place up, if there is one. Mutates the room."""
        if place in self._places:
            self._places.remove(place)
        place.called.set()
        self.asked(place)

    def holds(self, place: Place) -> bool:
        """Whether it still has its place."""
        return place in self._places

    async def turn(self, place: Place, pause_s: float, spare_s: float) -> bool:
        """Waits for about `pause_s`, and until no more urgent one asks; False when time or place were lost before that.

        `spare_s` is the time that it has. After True call `asked`, or `leave`, when the answer is known.
        """
        now_s, (least_s, most_s) = self._clock(), _PAUSE_S
        most_s = max(most_s, spare_s * _PATIENCE)
        until_s, place.ready_s = now_s + spare_s, now_s + max(least_s, min(pause_s, most_s))
        while self.holds(place) and now_s < until_s:
            if self._is_turn(place, now_s):
                self._asking[place.kind] = place
                return True
            wake_s = min(place.ready_s, until_s) if place.ready_s > now_s else until_s
            place.called.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(place.called.wait(), wake_s - now_s)
            now_s = self._clock()
        return False

    def asked(self, place: Place) -> None:
        """The workers have answered: the next one may ask. Mutates the room."""
        if self._asking.get(place.kind) is place:
            del self._asking[place.kind]
        place.ready_s = math.inf  # until it waits for another turn
        following = self._first(place.kind, self._clock())
        if following is not None:
            following.called.set()

    def _is_turn(self, place: Place, now_s: float) -> bool:
        return place.kind not in self._asking and place.ready_s <= now_s and self._first(place.kind, now_s) is place

    def _first(self, kind: common_pb2.Kind, now_s: float) -> Place | None:
        """The first in order of those that are ready."""
        ready = (each for each in self._places if each.kind == kind and each.ready_s <= now_s)
        return min(ready, key=self._order, default=None)

    def _order(self, place: Place) -> tuple[int, float, float]:
        priority, due_s = place.order
        return priority, self._shares.used(place.tenant), due_s

    def _last(self, kind: common_pb2.Kind) -> Place:
        lowest = max(place.order[0] for place in self._places if place.kind == kind)
        places = [place for place in self._places if place.kind == kind and place.order[0] == lowest]
        held = Counter(place.tenant for place in places)

        def claim(place: Place) -> tuple[float, str, float]:
            return held[place.tenant] / self._shares.weight_of(place.tenant), place.tenant, place.order[1]

        return max(places, key=claim)


def may_wait(refusal: HeadwayError) -> bool:
    """Whether the refusal is for load, and not for good."""
    return refusal.reason in _LATER and refusal.retry_after_s is not None
