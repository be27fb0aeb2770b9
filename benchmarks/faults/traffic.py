"""Requests to the mesh under test, open loop, through both routers; and what came of each."""

import asyncio
import itertools
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.faults.requests import KEPT_EVERY, KINDS, VARIANTS, Answer, Asked, References
from headway.balancing import BalancedHeadway
from headway.errors import HeadwayError
from headway.v1 import errors_pb2

DEADLINES_S = (8.0, 12.0, 16.0)
"""Room to notice a stall, and to go on elsewhere: this run is about faults, not about tight deadlines."""
LOAD = 0.7
IN_FLIGHT = 12
REFUSALS = {
    errors_pb2.ErrorReason.Name(reason).removeprefix("ERROR_REASON_")
    for reason in (
        errors_pb2.ERROR_REASON_SHED,
        errors_pb2.ERROR_REASON_BUDGET_TOO_SMALL,
        errors_pb2.ERROR_REASON_TOO_MANY_CALLS,
        errors_pb2.ERROR_REASON_DRAINING,
        errors_pb2.ERROR_REASON_NO_WORKER,
    )
}
"""What a unary call, which brings no plan before its answer, may end with and was not admitted."""


@dataclass(frozen=True, slots=True)
class Call:
    """What came of one request. Times in s, on the generator's clock."""

    asked: Asked
    sent_s: float
    ended_s: float
    admitted: bool
    """A plan came; of a unary call that failed: it was not refused."""
    error: str | None
    """The reason of the refusal or failure; SKIPPED: of a path that lacks frames."""
    wrong: str | None
    """What is wrong with a whole answer."""
    attempts: int
    """Workers that were asked, as the answer says."""
    same_images: int

    @property
    def right(self) -> bool:
        return self.error is None and self.wrong is None


class Traffic:
    """Sends requests and keeps what came of them. Belongs to one event loop."""

    def __init__(self, client: BalancedHeadway, references: References) -> None:
        self._client, self._references = client, references
        self.calls: list[Call] = []
        self.open = 0

    async def capacity(self, lowest_frame: str, seconds: float) -> dict[str, float]:
        """Answers a second of each kind, alone at the cheapest rung that it may have, all workers at rest but for it.

        Raises RuntimeError for a kind without an answer.
        """
        found = {}
        for kind in KINDS:
            ended = await self._closed_loop(kind, lowest_frame if kind == "splat" else None, seconds)
            late = [end_s for end_s in ended if end_s > seconds / 4]  # before that caches and batches fill
            if len(late) < 2:
                raise RuntimeError(f"too few answers of kind {kind} in {seconds:g} s to measure by")
            found[kind] = (len(late) - 1) / (late[-1] - late[0])
        return found

    async def _closed_loop(self, kind: str, rung: str | None, seconds: float) -> list[float]:
        began_s, numbers, ended = time.perf_counter(), itertools.count(), list[float]()

        async def one_after_the_other() -> None:
            while time.perf_counter() - began_s < seconds:
                call = await self._ask(Asked(kind, next(numbers) % VARIANTS, kept=False, rung=rung), DEADLINES_S[-1])
                if call.right:
                    ended.append(call.ended_s - began_s)
                elif call.wrong is not None:
                    raise RuntimeError(f"before any fault: {call.wrong}")
                else:
                    await asyncio.sleep(0.2)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(IN_FLIGHT):
                tasks.create_task(one_after_the_other())
        return ended

    async def send(self, rates: Mapping[str, float], seed: int, until: asyncio.Event) -> None:
        """Poisson arrivals of each kind, requests a second, until told to end; returns when all are answered."""
        async with asyncio.TaskGroup() as tasks:
            for kind, rate in rates.items():
                tasks.create_task(self._send(kind, rate, random.Random(f"{seed} {kind}"), until))

    async def _send(self, kind: str, rate: float, draw: random.Random, until: asyncio.Event) -> None:
        at_s = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number in itertools.count():
                at_s += draw.expovariate(rate)
                await asyncio.sleep(max(0.0, at_s - time.perf_counter()))
                if until.is_set():
                    return
                asked = Asked(kind, draw.randrange(VARIANTS), kept=number % KEPT_EVERY == 0)
                tasks.create_task(self._counted(asked, draw.choice(DEADLINES_S)))

    async def _counted(self, asked: Asked, deadline_s: float) -> None:
        self.open += 1
        try:
            self.calls.append(await self._ask(asked, deadline_s))
        finally:
            self.open -= 1

    async def _ask(self, asked: Asked, deadline_s: float) -> Call:
        answer, error, sent_s = Answer(), None, time.perf_counter()
        try:
            async for message in asked.calls(self._client, deadline_s):
                asked.note(message, answer)
        except HeadwayError as failure:
            error = failure.reason_name
        ended_s, unary = time.perf_counter(), asked.kind == "splat" and asked.kept
        if error is not None or answer.served is None:
            admitted = answer.plan is not None or (unary and error not in REFUSALS)
            return Call(asked, sent_s, ended_s, admitted, error or "NO_SUMMARY", None, 0, 0)
        if answer.skipped:
            return Call(asked, sent_s, ended_s, True, "SKIPPED", None, answer.served.attempts, 0)
        wrong = self._references.fault_of(asked, answer)
        same = self._references.same_images(asked, answer) if asked.kind == "image" and wrong is None else 0
        return Call(asked, sent_s, ended_s, True, None, wrong, answer.served.attempts, same)
