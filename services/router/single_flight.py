"""One worker's call for identical deterministic requests that are in flight together (DESIGN, decision 11).

The first one leads: it is answered as if it were alone. Those that come meanwhile wait for its whole answer, while time
enough is left to be served without it; when the first is refused, fails, goes away, or brings less than one of them
wants, that one goes on alone.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from headway.deadline import Budget, Clock
from headway.prefix import tenant_salt
from services.router.methods import Method
from services.router.placement import Placement
from services.router.replay import Answer, read_answer, result_key, will_do
from services.router.result_cache import Recording


@dataclass(slots=True, eq=False)
class Flight:
    """A request that leads."""

    expected: Placement
    ends_s: float
    """When it is expected to be answered; monotonic."""
    recording: Recording
    whole: "asyncio.Future[list[bytes] | None]" = field(default_factory=asyncio.Future)
    """The answer's messages; None when there is none to share."""

    def land(self) -> None:
        """The answer is whole: those that wait get it."""
        self.whole.set_result(self.recording.messages)


class Flights:
    """The requests that lead now. Belongs to one event loop."""

    def __init__(self, secret: bytes, max_bytes: int, quantile: float, clock: Clock) -> None:
        """`secret` keeps tenants apart, `max_bytes` is the largest answer that is held for others."""
        self._secret, self._max_bytes, self._quantile, self._clock = secret, max_bytes, quantile, clock
        self._flights: dict[bytes, Flight] = {}

    def key(self, method: Method, request: Any, tenant: str, placement: Placement) -> bytes:
        """What identical requests share; see `result_key`."""
        return result_key(method, request, placement.asset.hash, tenant_salt(self._secret, tenant))

    def joinable(self, key: bytes, wanted: Placement, budget: Budget) -> Flight | None:
        """The request that leads, where its answer is expected to be as good as `wanted` and in time to go alone."""
        flight = self._flights.get(key)
        if flight is None or flight.ends_s > self._until_s(wanted, budget):
            return None
        rung = flight.expected.rung
        return flight if will_do(rung.label, rung.quality, wanted) else None

    async def answer(self, flight: Flight, method: Method, wanted: Placement, budget: Budget) -> Answer | None:
        """The leader's answer; None when it brings none that will do, or not while there is time to go alone."""
        left_s = self._until_s(wanted, budget) - self._clock()
        done, _ = await asyncio.wait([flight.whole], timeout=max(0.0, left_s))
        messages = flight.whole.result() if done else None
        answer = read_answer(method, messages) if messages is not None else None
        return answer if answer is not None and answer.serves(wanted) else None

    @contextmanager
    def leading(self, key: bytes, expected: Placement) -> Iterator[Flight]:
        """Around a request that others may join; `land` it when it is whole."""
        ends_s = self._clock() + expected.finish.quantile_ms(self._quantile) / 1000
        flight = self._flights[key] = Flight(expected, ends_s, Recording(self._max_bytes))
        try:
            yield flight
        finally:
            if self._flights.get(key) is flight:  # one that promised more may have taken its place
                del self._flights[key]
            if not flight.whole.done():
                flight.whole.set_result(None)

    def _until_s(self, wanted: Placement, budget: Budget) -> float:
        """Until when to wait: for half of the time that going alone would leave; a leader that hangs takes no more."""
        now_s = self._clock()
        spare_s = budget.due_s - now_s - wanted.finish.quantile_ms(self._quantile) / 1000
        return now_s + spare_s / 2
