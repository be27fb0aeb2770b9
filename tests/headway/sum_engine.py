"""A real, tiny engine for tests of the engine loop: it adds up numbers, a step at a time."""

import asyncio
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from headway.cost import Cost, Load, StepCurve
from headway.deadline import Budget
from headway.device import Lease
from headway.engine import Batch
from headway.errors import HeadwayError
from headway.planning import Job, Option, Setting
from headway.quality import Ladder, Rung, read_wish
from headway.ticket import Finished, Ticket
from headway.v1 import common_pb2

LADDER = Ladder((Rung("4", 1.0, nfe=4), Rung("2", 0.8, nfe=2), Rung("1", 0.5, nfe=1)))


@dataclass
class Sum:
    """Adds `number` once per step."""

    ticket: Ticket
    number: int
    total: int = 0


class SumScheduler:
    """Whatever is ready goes together, at most `max_batch`; a step is said to cost `step_ms`."""

    def __init__(self, step_ms: float, max_batch: int = 8, *, commits: bool = False) -> None:
        self.curve = StepCurve(((1, Cost(step_ms)),))
        self.max_batch, self.commits = max_batch, commits

    def setting(self, now_s: float, foreign: Any, scale: Cost) -> Setting:
        return Setting(now_s, self.curve, self.max_batch, scale, foreign, commits=self.commits)

    def job(self, work: Sum, now_s: float) -> Job:
        ticket = work.ticket
        done = ticket.steps_executed
        options = [
            Option(rung, Load(ticket.budget.due_s, 1, rung.nfe - done))
            for rung in ticket.wish.allowed
            if rung.nfe is not None and rung.nfe > done
        ]
        return Job(ticket.key, ticket.wish.priority, ticket.budget.due_s, ticket.target_s, tuple(options))

    def next_batch(self, works: Sequence[Sum], now_s: float, scale: Cost) -> Batch[Sum] | None:
        taken = tuple(works[: self.max_batch])
        return Batch("steps", taken, len(taken), self.curve.at(len(taken)))


@dataclass
class SumEngine:
    begun: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event = field(default_factory=threading.Event)
    fails: bool = False
    batches: list[list[int]] = field(default_factory=list)
    released: list[int] = field(default_factory=list)

    def run(self, batch: Batch[Sum]) -> list[int]:
        self.begun.set()
        assert self.gate.wait(10)
        if self.fails:
            raise ArithmeticError("no more numbers")
        return [work.total + work.number for work in batch.works]

    def apply(self, batch: Batch[Sum], result: list[int], now_s: float) -> list[tuple[Ticket, Any]]:
        events: list[tuple[Ticket, Any]] = []
        self.batches.append([work.ticket.key for work in batch.works])
        for work, total in zip(batch.works, result, strict=True):
            work.total = total
            work.ticket.steps_executed += 1
            events.append((work.ticket, total))
            if work.ticket.steps_executed >= (work.ticket.rung.nfe or 0):
                events.append((work.ticket, Finished(total)))
        return events

    def release(self, work: Sum) -> None:
        self.released.append(work.ticket.key)


class Alone:
    """A device that nobody shares, which remembers what it was told."""

    def __init__(self, others: tuple[tuple[float, float], ...] = ()) -> None:
        self.demand: list[tuple[float, float]] = []
        self._others = others
        self.step_end_s: float | None = None
        self.others_step_ends_s: float | None = None

    def lease(self, *, due_s: float, label: str, keep: bool = False) -> AbstractContextManager[Any]:
        return nullcontext(Lease(wait_s=0.0, granted=True))

    def rest(self) -> None:
        """Nothing is kept."""

    def hurry(self, due_s: float) -> None:
        """Nobody waits."""

    def declare(self, demand: Sequence[tuple[float, float]], *, step_end_s: float | None = None) -> None:
        self.demand, self.step_end_s = list(demand), step_end_s

    def others(self) -> tuple[tuple[float, float], ...]:
        return self._others

    @property
    def busy_until_s(self) -> float | None:
        return self.others_step_ends_s


class Quiet:
    def stepped(self, batch: Batch[Any], actual_ms: float, queued: int, lease: Any) -> None: ...

    def finished(self, ticket: Ticket, now_s: float) -> None: ...


def make(number: int = 1, budget_s: float = 5.0, level: common_pb2.ServiceLevel | None = None) -> Sum:
    now_s = time.monotonic()
    budget = Budget(now_s, now_s + budget_s, 0.0)
    wish = read_wish(level or common_pb2.ServiceLevel(), LADDER, common_pb2.KIND_IMAGE)
    return Sum(Ticket(budget, wish, budget.due_s), number)


class SteppedClock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def outcome(ticket: Ticket) -> Any:
    """Reads events to the last one."""
    while True:
        event = await asyncio.wait_for(ticket.events.get(), 10)
        if isinstance(event, Finished | HeadwayError):
            return event
