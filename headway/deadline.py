"""The budget of a call: the time left until the caller's deadline, less what is kept back to return the answer.

gRPC's own timeout is the only carrier. Python forwards nothing by itself, so every handler takes its budget on its
first line and gives what is left to the calls that it makes. Budgets combine by minimum and never grow.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from headway.errors import Expired

Clock = Callable[[], float]
"""Monotonic time in seconds; all processes of a host share its zero on Linux."""

# gRPC sends a timeout with three digits, rounded UP to these steps: (timeouts below this many ms, step in ms).
_WIRE_GRID_MS = (
    (1_000, 1),
    (10_000, 10),
    (100_000, 100),
    (1_000_000, 1_000),
    (10_000_000, 10_000),
    (100_000_000, 100_000),
)


class HasTimeRemaining(Protocol):
    """The part of a gRPC servicer context that carries the deadline."""

    def time_remaining(self) -> float | None: ...


def floor_to_wire_s(timeout_s: float) -> float:
    """Floors a timeout to gRPC's wire grid, so that rounding up on the wire cannot make a budget grow.

    Returns 0.0 for what is under a millisecond: no call can be made with that.
    """
    timeout_ms = max(0, int(timeout_s * 1000 + 1e-6))
    for below_ms, step_ms in _WIRE_GRID_MS:
        if timeout_ms < below_ms:
            return (timeout_ms // step_ms) * step_ms / 1000
    return float(_WIRE_GRID_MS[-1][0]) / 1000


@dataclass(frozen=True, slots=True)
class Budget:
    """What a call may still use. Times are monotonic seconds."""

    arrival_s: float
    deadline_s: float
    """When the caller stops waiting."""
    reserve_s: float
    """Kept back for the way home."""

    @property
    def due_s(self) -> float:
        """When the answer must be complete here."""
        return self.deadline_s - self.reserve_s

    @property
    def total_s(self) -> float:
        """The budget at arrival; never negative."""
        return max(0.0, self.due_s - self.arrival_s)

    def remaining_s(self, now_s: float) -> float:
        """The budget that is left; negative when it is overdrawn."""
        return self.due_s - now_s

    def check(self, now_s: float) -> None:
        """Raises `Expired` when nothing is left."""
        if self.remaining_s(now_s) <= 0:
            late_ms = -self.remaining_s(now_s) * 1000
            raise Expired(f"the deadline passed {late_ms:.0f} ms ago, with the time to answer counted in")

    def onward_timeout_s(self, now_s: float) -> float:
        """The timeout for a call that this one makes, on gRPC's wire grid. Raises `Expired` when nothing is left."""
        timeout_s = floor_to_wire_s(self.remaining_s(now_s))
        if timeout_s <= 0:
            raise Expired("nothing of the budget is left to pass on")
        return timeout_s

    def capped(self, due_s: float) -> "Budget":
        """The same budget, due at `due_s` if that is earlier."""
        return replace(self, deadline_s=min(self.deadline_s, due_s + self.reserve_s))


def budget_of(
    context: HasTimeRemaining, *, max_deadline_s: float, reserve_s: float, clock: Clock = time.monotonic
) -> Budget:
    """Takes the budget of an incoming call. Call it on a handler's first line.

    A call without a deadline, or with one that is further away, gets `max_deadline_s`. Raises `Expired` when the
    deadline has passed.
    """
    now_s = clock()
    remaining_s = context.time_remaining()
    timeout_s = max_deadline_s if remaining_s is None else min(remaining_s, max_deadline_s)
    budget = Budget(arrival_s=now_s, deadline_s=now_s + timeout_s, reserve_s=reserve_s)
    budget.check(now_s)
    return budget
