"""The budget of a call: the time left until the caller's deadline, less what is kept back to return the answer.

gRPC's own timeout is the only carrier. Python forwards nothing by itself, so every handler takes its budget on its
first line and gives what is left to the calls that it makes. Budgets combine by minimum and never grow.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

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
PROMISED = ("headway-promised", "1")
"""Metadata of a call for the rest of an answer that was cut off: it was admitted before, so that it may use what is
kept free for such (`headway.jobs.Setting.failover_ms`). Who claims it without need is only let in to wait for longer.
"""
_ROUNDED_MS = 2
"""Before that it makes a deadline of the timeout in whole ms, rounded up, and adds one: 1.899 s arrives as 1.9096."""


class HasTimeRemaining(Protocol):
    """The part of a gRPC servicer context that carries the deadline."""

    def time_remaining(self) -> float | None: ...


def floor_to_wire_s(timeout_s: float) -> float:
    """The longest timeout that arrives as at most `timeout_s`, whatever gRPC rounds up on the wire.

    It lies just below a step of the wire's grid. Returns 0.0 where no call can be made with what is left.
    """
    timeout_ms = max(0, int(timeout_s * 1000 + 1e-6))
    step_ms = next((step_ms for below_ms, step_ms in _WIRE_GRID_MS if timeout_ms < below_ms), None)
    arrives_ms = _WIRE_GRID_MS[-1][0] if step_ms is None else timeout_ms // step_ms * step_ms
    return max(0, arrives_ms - _ROUNDED_MS) / 1000


@dataclass(frozen=True, slots=True)
class Budget:
    """What a call may still use. Times are monotonic seconds."""

    arrival_s: float
    deadline_s: float
    """When the caller stops waiting."""
    reserve_s: float
    """Kept back for the way home."""
    promised: bool = False
    """For the rest of an answer that another server began: see `PROMISED`."""

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


def is_promised(context: Any) -> bool:
    """Whether a servicer's call is marked with `PROMISED`."""
    return PROMISED in (context.invocation_metadata() or ())


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
