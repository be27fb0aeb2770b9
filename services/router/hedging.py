"""A second worker for unary work that takes longer than was expected: the first answer is taken, the other call ends.

Off by default. Only for what may be done twice: one frame. Only where the second answer is expected within the budget,
and for about one in ten answers, so that hedges under load do not make the load; never while retries are throttled.
What a worker has promised to others is safe, because it admits a hedge like any other request.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

from headway.deadline import Clock
from headway.telemetry import Hedge, Metrics
from services.router.forwarding import Outgoing
from services.router.placement import Placement
from services.router.pool import kind_name
from services.router.throttle import RetryThrottle

Trailing = tuple[tuple[str, str | bytes], ...]


class Passing(Protocol):
    """Asks workers, one after the other: see `services.router.forwarding.Forwarder`."""

    @property
    def may_retry(self) -> bool: ...

    def messages(self, outgoing: Outgoing, placements: Iterable[Placement]) -> AsyncGenerator[bytes, None]: ...


@dataclass(frozen=True, slots=True)
class _Whole:
    message: bytes
    trailers: Trailing


class Hedger:
    """Forwarding with a second try beside the first. Belongs to one event loop."""

    def __init__(self, forwarder: Passing, quantile: float | None, metrics: Metrics, clock: Clock) -> None:
        """Hedges what is not answered when it should be with this probability; None: nothing."""
        self._forwarder, self._quantile, self._metrics, self._clock = forwarder, quantile, metrics, clock
        self._throttle = RetryThrottle()

    def messages(self, outgoing: Outgoing, placements: Sequence[Placement]) -> AsyncGenerator[bytes, None]:
        """As `Forwarder.messages`, and those themselves where nothing is hedged: a stream pays for each hand it goes
        through."""
        if self._quantile is not None and outgoing.method.repeatable and len(placements) > 1:
            return self._hedged(outgoing, placements, placements[0].finish.quantile_ms(self._quantile) / 1000)
        return self._forwarder.messages(outgoing, placements)

    async def _hedged(
        self, outgoing: Outgoing, placements: Sequence[Placement], after_s: float
    ) -> AsyncGenerator[bytes, None]:
        yield await self._first_of_two(outgoing, placements, after_s)

    async def _first_of_two(self, outgoing: Outgoing, placements: Sequence[Placement], after_s: float) -> bytes:
        asked = set[str]()
        tasks = [asyncio.create_task(self._whole(outgoing, _noting(placements, asked)))]
        try:
            await asyncio.wait(tasks, timeout=after_s)
            if not tasks[0].done() and (other := self._other(outgoing, asked)) is not None:
                self._throttle.lost()
                tasks.append(asyncio.create_task(self._whole(outgoing, [other])))
            taken = await _taken(tasks)
            whole = taken.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._throttle.answered()
        outgoing.trailers(whole.trailers)
        if len(tasks) == 1:
            return whole.message
        result = Hedge.WON if taken is tasks[1] else Hedge.LOST
        self._metrics.hedges.labels(kind_name(outgoing.method.kind), result).inc()
        return _asked_twice(outgoing, whole.message)

    async def _whole(self, outgoing: Outgoing, placements: Iterable[Placement]) -> _Whole:
        trailers: list[Trailing] = [()]
        alone = replace(outgoing, trailers=trailers.append)
        async with aclosing(self._forwarder.messages(alone, placements)) as messages:
            (message,) = [message async for message in messages]
        return _Whole(message, trailers[-1])

    def _other(self, outgoing: Outgoing, asked: set[str]) -> Placement | None:
        """The best worker that was not asked, if it most likely answers in time."""
        if not (self._throttle.allows and self._forwarder.may_retry):
            return None
        left_ms = outgoing.budget.remaining_s(self._clock()) * 1000
        others = (placement for placement in outgoing.rank() if placement.view.address not in asked)
        return next((placement for placement in others if placement.finish.mean_ms < left_ms), None)


async def _taken(tasks: Sequence["asyncio.Task[_Whole]"]) -> "asyncio.Task[_Whole]":
    """The first that brings an answer; where none does, the first one that was begun."""
    waiting = set(tasks)
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task in done and task.exception() is None:
                return task
    return tasks[0]


def _noting(placements: Iterable[Placement], asked: set[str]) -> Iterator[Placement]:
    """The placements; adds the addresses of those that were taken to `asked`."""
    for placement in placements:
        asked.add(placement.view.address)
        yield placement


def _asked_twice(outgoing: Outgoing, message: bytes) -> bytes:
    parsed = outgoing.method.response.FromString(message)
    served = outgoing.method.served(parsed)
    if served is None:
        return message
    served.attempts = max(2, served.attempts)
    return parsed.SerializeToString()
