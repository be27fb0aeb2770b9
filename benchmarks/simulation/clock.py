"""Virtual time: what is to happen, in order."""

import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import Any


class Clock:
    """A clock that jumps from one event to the next; calling it gives the time, in s. Events of one time keep order."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()

    def __call__(self) -> float:
        return self.now_s

    def at(self, at_s: float, act: Callable[..., None], *arguments: Any) -> None:
        """`act` is called at this time, or now if it has passed."""
        heapq.heappush(self._events, (max(at_s, self.now_s), next(self._numbers), act, arguments))

    def follow(self, arrivals: Iterator[tuple[float, Any]], act: Callable[[Any], None]) -> None:
        """Plays to the end of all events: each of `arrivals`, whose times rise, is given to `act` at its time."""
        for at_s, arrival in arrivals:
            self._until(at_s)
            self.now_s = at_s
            act(arrival)
        self._until(float("inf"))

    def _until(self, end_s: float) -> None:
        events = self._events
        while events and events[0][0] <= end_s:
            self.now_s, _, act, arguments = heapq.heappop(events)
            act(*arguments)
