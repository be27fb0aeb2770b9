"""Asks workers for a request, and again later where all refuse for load and it could still be answered in time."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from headway.deadline import Clock
from headway.errors import HeadwayError
from headway.server import tenant_of_call
from headway.telemetry import Metrics
from headway.v1 import errors_pb2
from services.router.fairness import Shares
from services.router.forwarding import Outgoing
from services.router.hedging import Hedger
from services.router.placement import Placement
from services.router.pool import kind_name
from services.router.quotas import device_ms
from services.router.waiting import Place, WaitingRoom, may_wait, spare_s


class Asker:
    """Forwarding with a bounded queue behind it."""

    def __init__(self, forwarder: Hedger, room: WaitingRoom, shares: Shares, metrics: Metrics, clock: Clock) -> None:
        self._forwarder, self._room, self._shares = forwarder, room, shares
        self._metrics, self._clock = metrics, clock

    async def messages(self, outgoing: Outgoing, placements: Sequence[Placement]) -> AsyncGenerator[bytes, None]:
        """As `Forwarder.messages`; the refusal comes when waiting is of no use."""
        begun = False
        try:
            async with aclosing(self._forwarder.messages(outgoing, placements)) as messages:
                async for message in messages:
                    if not begun:
                        self._begun(outgoing, placements)
                    begun = True
                    yield message
            return
        except HeadwayError as error:
            if begun or not may_wait(error):
                raise
            refusal = error
        async with aclosing(self._later(outgoing, refusal)) as messages:
            async for message in messages:
                yield message

    async def _later(self, outgoing: Outgoing, refusal: HeadwayError) -> AsyncGenerator[bytes, None]:
        order = (-outgoing.priority, outgoing.budget.due_s)
        place = Place(outgoing.method.kind, order, tenant_of_call.get())
        self._room.enter(place)
        try:
            while await self._turn(outgoing, place, refusal):
                placements = outgoing.rank()
                try:
                    async with aclosing(self._forwarder.messages(outgoing, placements)) as messages:
                        async for message in messages:
                            if self._room.holds(place):
                                self._begun(outgoing, placements)
                            self._leave(place)
                            yield message
                    return
                except HeadwayError as error:
                    if not self._room.holds(place) or not (may_wait(error) or _is_too_late(error)):
                        raise
                    refusal = error if may_wait(error) else refusal
                self._room.asked(place)
            raise refusal
        finally:
            self._leave(place)

    async def _turn(self, outgoing: Outgoing, place: Place, refusal: HeadwayError) -> bool:
        """Whether to ask now; False as soon as it is hopeless."""
        self._count(place)
        left_s = spare_s(outgoing.rank(), outgoing.budget.due_s, self._clock())
        return left_s is not None and await self._room.turn(place, refusal.retry_after_s or 0.0, left_s)

    def _begun(self, outgoing: Outgoing, placements: Sequence[Placement]) -> None:
        """A worker has said yes: its tenant has got that much."""
        if outgoing.method.uses_device and placements:
            self._shares.served(tenant_of_call.get(), device_ms(placements[0]))

    def _leave(self, place: Place) -> None:
        if self._room.holds(place):
            self._room.leave(place)
            self._count(place)

    def _count(self, place: Place) -> None:
        self._metrics.waiting.labels(kind_name(place.kind)).set(self._room.count(place.kind))


def _is_too_late(error: HeadwayError) -> bool:
    return error.reason == errors_pb2.ERROR_REASON_BUDGET_TOO_SMALL
