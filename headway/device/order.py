"""Who holds the device next, and what each client has to know of the others. Pure: no I/O, no clock."""

import heapq
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from headway.device.wire import MAX_BUCKETS, MAX_CLIENTS, Demand

Client = TypeVar("Client", bound=Hashable)


@dataclass(order=True, slots=True)
class Waiter(Generic[Client]):
    """A request for the device; sorted by when it must start, then by arrival."""

    due_s: float
    arrival: int
    client: Client = field(compare=False)
    lease_id: int = field(compare=False)
    label: str = field(compare=False)
    end_s: float | None = field(compare=False, default=None)
    """When its step should end; None while it has not begun."""


class ClaimError(ValueError):
    """A client asks again before its earlier request has ended."""


class LeaseQueue(Generic[Client]):
    """One holder at a time; the next is the waiter with the earliest `due_s`. One claim a client."""

    def __init__(self) -> None:
        self.holder: Waiter[Client] | None = None
        self._heap: list[Waiter[Client]] = []
        self._claims: dict[Client, Waiter[Client]] = {}
        self._arrivals = 0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._claims) - (self.holder is not None)

    def ask(self, client: Client, lease_id: int, due_s: float, label: str) -> None:
        """Adds a waiter. Raises `ClaimError` when the client waits or holds already."""
        if client in self._claims:
            raise ClaimError(f"{label or 'client'} asks for a lease while it has one")
        self._arrivals += 1
        waiter = Waiter(due_s, self._arrivals, client, lease_id, label)
        self._claims[client] = waiter
        heapq.heappush(self._heap, waiter)

    def end(self, client: Client, lease_id: int | None = None) -> None:
        """Ends the client's lease or withdraws its request; None ends either. An unknown one is ignored."""
        claim = self._claims.get(client)
        if claim is None or lease_id not in (None, claim.lease_id):
            return
        del self._claims[client]
        if self.holder is claim:
            self.holder = None

    def running(self, client: Client, lease_id: int, end_s: float) -> bool:
        """Takes in when the holder's step should end; returns False, and does nothing, for any other lease."""
        holder = self.holder
        if holder is None or holder.client != client or holder.lease_id != lease_id:
            return False
        holder.end_s = end_s
        return True

    def busy_until_s(self, client: Client) -> float | None:
        """When the step should end that another client runs now."""
        holder = self.holder
        return holder.end_s if holder is not None and holder.client != client else None

    def grant(self) -> Waiter[Client] | None:
        """Makes the most urgent waiter the holder and returns it; None when one holds or nobody waits."""
        while self.holder is None and self._heap:
            waiter = heapq.heappop(self._heap)
            if self._claims.get(waiter.client) is waiter:  # else it was withdrawn
                self.holder = waiter
                return waiter
        return None


class DemandBoard(Generic[Client]):
    """What each client has declared as its admitted work."""

    def __init__(self) -> None:
        self._declared: dict[Client, tuple[Demand, ...]] = {}

    def declare(self, client: Client, demand: tuple[Demand, ...]) -> bool:
        """Replaces what the client declared; an empty one removes it. Returns whether anything changed."""
        before = self._declared.pop(client, ())
        if demand:
            self._declared[client] = demand
        return before != demand

    def others(self, client: Client) -> tuple[Demand, ...]:
        """What all but `client` declared, in no order; at most `MAX_CLIENTS` times `MAX_BUCKETS`."""
        lists = [demand for other, demand in self._declared.items() if other != client]
        return tuple(item for demand in lists for item in demand)[: MAX_CLIENTS * MAX_BUCKETS]
