"""Passes a request to the workers in the order of their rank, and their bytes back.

Where a worker refuses, the next one is asked. Where it is lost, the answer goes on with another one: see `continuing`.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any

import grpc

from headway.channels import onward
from headway.continuing import Continuation
from headway.deadline import Budget, Clock
from headway.errors import (
    DETAILS_KEY,
    BudgetTooSmall,
    Expired,
    HeadwayError,
    NoWorker,
    RemoteError,
    WorkerLost,
    from_rpc_error,
)
from headway.server import tenant_of_call
from headway.telemetry import Span
from headway.tracing import Tracing
from headway.v1 import common_pb2, errors_pb2
from services.router.member import Member
from services.router.methods import Method
from services.router.placement import Placement
from services.router.pool import Pool, kind_name
from services.router.throttle import RetryThrottle
from services.router.view import View

MOST_ATTEMPTS = 4
"""Workers that are asked for one request, before its caller is told."""
MOST_ASKED = 48
"""Times that workers are asked to go on with an answer that was cut off, while they are full."""
_ASK_AGAIN_S = 0.25
_ASKED_BEFORE_SLOWER = 8
"""After so many a full worker is asked half as often, or those that may be asked are used up before the wait is."""
_COME_BACK_S = 0.5
_LOOK_AGAIN_S = 0.1
"""Reports come without a change of health; one tells that a worker is alive after all."""
ASK_ANOTHER = {
    errors_pb2.ERROR_REASON_SHED,
    errors_pb2.ERROR_REASON_TOO_MANY_CALLS,
    errors_pb2.ERROR_REASON_DRAINING,
    errors_pb2.ERROR_REASON_WORKER_LOST,
}
"""Reasons of a refusal after which another worker is asked."""

Trailers = Callable[[tuple[tuple[str, str | bytes], ...]], None]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A call that is passed on."""

    method: Method
    answer: Continuation
    budget: Budget
    rank: Callable[[], Sequence[Placement]]
    """The workers to ask as things stand, best first; may be none."""
    trailers: Trailers
    """Is told the trailing metadata of the worker that served."""
    priority: common_pb2.Priority = common_pb2.PRIORITY_NORMAL


class _NotBegun(Exception):
    """The worker refused, or was lost before it answered: another one may be asked."""

    def __init__(self, error: HeadwayError) -> None:
        super().__init__(error.message)
        self.error = error


def no_worker(kind: str) -> NoWorker:
    """The refusal when no worker of a kind is healthy."""
    return NoWorker(f"no healthy worker for {kind} is known", retry_after_s=_COME_BACK_S)


class Forwarder:
    """Calls workers on behalf of callers. Response bytes are never parsed when the first worker serves."""

    def __init__(self, pool: Pool, tracing: Tracing, clock: Clock, *, failover_wait_s: float) -> None:
        """`failover_wait_s`: how long an answer that was cut off may wait for a worker that can go on."""
        self._pool, self._tracing, self._clock = pool, tracing, clock
        self._failover_wait_s = failover_wait_s
        self._throttle = RetryThrottle()

    @property
    def may_retry(self) -> bool:
        """Whether workers are not lost so often that asking others again would take them too."""
        return self._throttle.allows

    async def messages(self, outgoing: Outgoing, placements: Iterable[Placement]) -> AsyncGenerator[bytes, None]:
        """The answer's messages; one where the method is unary.

        Where a worker refuses or is lost, the next one is asked, inside the same budget. When all refuse, raises the
        refusal with the soonest retry. Leaving early cancels the worker's call.
        """
        attempts = _Attempts(outgoing, placements)
        while (placement := await self._next(attempts)) is not None:
            member = self._pool.member(placement.view)
            if member is None:
                continue
            attempts.count += 1
            try:
                async with aclosing(self._ask(attempts, member, placement)) as messages:
                    async for message in messages:
                        outgoing.answer.passed(message)
                        yield message
                self._throttle.answered()
                return
            except _NotBegun as refused:
                attempts.refusals.append(refused.error)
                attempts.put_off(refused.error, member.address, self._clock())
                if refused.error.reason == errors_pb2.ERROR_REASON_WORKER_LOST:
                    self._throttle.worker_lost(member.address, self._clock())
            except WorkerLost as lost:
                self._throttle.worker_lost(member.address, self._clock())
                attempts.cut_off(lost, member.address, self._clock())
            except HeadwayError as error:
                # What an earlier worker said is better news than that no time is left to ask the next one.
                if attempts.refusals and error.status is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise soonest(attempts.refusals) from error
                raise
        raise soonest(attempts.refusals) if attempts.refusals else no_worker(kind_name(outgoing.method.kind))

    async def _next(self, attempts: "_Attempts") -> Placement | None:
        """The worker to ask now; None when no more can be."""
        if attempts.raw is None:
            return None
        if attempts.lost_s is None:
            return next(attempts.placements, None) if attempts.count < MOST_ATTEMPTS else None
        if attempts.losses >= MOST_ATTEMPTS or attempts.count >= MOST_ASKED:
            return None
        return await self._who_goes_on(attempts, attempts.lost_s) if self._throttle.allows else None

    async def _who_goes_on(self, attempts: "_Attempts", lost_s: float) -> Placement | None:
        """The worker with which an answer that was cut off goes on, waiting for one as long as that makes sense."""
        until_s = min(lost_s + self._failover_wait_s, attempts.outgoing.budget.due_s)
        while True:
            changed = self._pool.changed
            able = (each for each in attempts.outgoing.rank() if attempts.may_ask(each.view, self._clock()))
            if (placement := next(able, None)) is not None:
                return placement
            if (left_s := until_s - self._clock()) <= 0:
                return None
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), min(left_s, _LOOK_AGAIN_S))

    async def _ask(self, attempts: "_Attempts", member: Member, placement: Placement) -> AsyncGenerator[bytes, None]:
        outgoing, attempt = attempts.outgoing, attempts.count
        worker_id = placement.view.description.worker_id
        span = self._tracing.span(Span.ROUTER_FORWARD, worker=worker_id, attempt=attempt, rung=placement.rung.label)
        with span, member.sending(placement.load) as sent:
            assert attempts.raw is not None
            budget = outgoing.budget if attempts.lost_s is None else replace(outgoing.budget, promised=True)
            options = onward(budget, sent.sent_s, member.identity.metadata(tenant_of_call.get())).kwargs()
            call = sent.call = _open(member.channel, outgoing.method, attempts.raw, options)
            try:
                async for message in call if outgoing.method.streams else _one(call):
                    sent.admitted_s = sent.admitted_s or self._clock()
                    if attempt == 1:
                        yield message
                    elif (rest := _rest(outgoing, message, attempt)) is not None:
                        yield rest
                member.answered(sent)
                outgoing.trailers(_passed_on(await call.trailing_metadata()))
            except grpc.aio.AioRpcError as error:
                told = _told(error, worker_id, begun=sent.admitted_s is not None)
                member.failed(sent, told.error if isinstance(told, _NotBegun) else told)
                raise _with_the_hop(told, outgoing.budget, sent.sent_s) from error
            except asyncio.CancelledError:
                if not sent.gave_up:
                    raise
                lost = WorkerLost(f"worker {worker_id} does not get on: {member.detail}", retry_after_s=_COME_BACK_S)
                raise (lost if sent.admitted_s is not None else _NotBegun(lost)) from None
            finally:
                call.cancel()


class _Attempts:
    """How far one request got with the workers that were asked."""

    def __init__(self, outgoing: Outgoing, placements: Iterable[Placement]) -> None:
        self.outgoing, self.placements = outgoing, iter(placements)
        self.raw: bytes | None = outgoing.answer.first()
        """What to ask; None when an answer was cut off that cannot go on."""
        self.count = 0
        self.refusals: list[HeadwayError] = []
        self.lost_s: float | None = None
        """When the answer was cut off last."""
        self.losses = 0
        """How often it was cut off."""
        self._lost_at, self._full_until = dict[str, float](), dict[str, float]()

    def cut_off(self, lost: WorkerLost, address: str, now_s: float) -> None:
        """A worker was lost while it answered."""
        self.raw, self.lost_s, self.losses = self.outgoing.answer.next(), now_s, self.losses + 1
        self.refusals.append(lost)
        self._lost_at[address] = now_s

    def put_off(self, refusal: HeadwayError, address: str, now_s: float) -> None:
        """A worker refused: it is not asked again at once, when it is to go on with an answer that was cut off."""
        most_s = _ASK_AGAIN_S * (1 + self.count / _ASKED_BEFORE_SLOWER)
        again_s = most_s if refusal.retry_after_s is None else min(refusal.retry_after_s, most_s)
        self._full_until[address] = now_s + again_s

    def may_ask(self, view: View, now_s: float) -> bool:
        """Whether the worker was not lost to this request, or has been heard of since, and did not refuse just now."""
        heard = view.report.received_s > self._lost_at.get(view.address, -math.inf)
        return heard and now_s >= self._full_until.get(view.address, -math.inf)


def _open(channel: grpc.aio.Channel, method: Method, raw: bytes, options: dict[str, Any]) -> Any:
    make: Any = channel.unary_stream if method.streams else channel.unary_unary
    return make(method.path)(raw, **options)


async def _one(call: Any) -> AsyncIterator[bytes]:
    """A unary answer as a stream."""
    yield await call


def _told(error: grpc.aio.AioRpcError, worker_id: str, *, begun: bool) -> HeadwayError | _NotBegun:
    """What a worker's error means here: its own typed errors stay as they are; a broken connection is a lost worker."""
    remote = from_rpc_error(error)
    typed = any(key == DETAILS_KEY for key, _ in remote.trailers)
    broken = remote.status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) and not typed
    told: HeadwayError = remote
    if broken:
        state = "while it worked; what was streamed stands" if begun else "before it answered"
        told = WorkerLost(f"worker {worker_id} was lost {state}: {remote.message}", retry_after_s=_COME_BACK_S)
    elif not typed and remote.status is grpc.StatusCode.DEADLINE_EXCEEDED:
        told = Expired("the deadline passed before the worker's answer was complete")
    return _NotBegun(told) if not begun and told.reason in ASK_ANOTHER else told


def _with_the_hop(told: Exception, budget: Budget, sent_s: float) -> Exception:
    """The least budget that would do is the worker's, what was kept and used here, and what the wire's grid may take:
    up to a hundredth and 2 ms. A caller who comes back with what the worker said would be refused again.
    """
    least_ms = told.metadata.get("least_budget_ms", "") if isinstance(told, RemoteError) else ""
    if not least_ms.isdigit():
        return told
    kept_ms = (sent_s - budget.arrival_s + budget.reserve_s) * 1000
    given_ms = (budget.deadline_s - budget.arrival_s) * 1000
    return BudgetTooSmall(budget_ms=given_ms, least_budget_ms=int(least_ms) * 1.01 + 2 + kept_ms)


def soonest(refusals: Sequence[HeadwayError]) -> HeadwayError:
    """The refusal that lets the caller come back first; one without advice comes last."""
    return min(refusals, key=_retry_s)


def _retry_s(refusal: HeadwayError) -> float:
    return float("inf") if refusal.retry_after_s is None else refusal.retry_after_s


def _rest(outgoing: Outgoing, message: bytes, attempts: int) -> bytes | None:
    """A later worker's message for the caller, saying in its `Served` how many were asked; None when he has it."""
    parsed = outgoing.method.response.FromString(message)
    if not outgoing.answer.rest(parsed):
        return None
    served = outgoing.method.served(parsed)
    if served is not None:
        served.attempts = attempts
    return parsed.SerializeToString()


def _passed_on(trailing: Any) -> tuple[tuple[str, str | bytes], ...]:
    return tuple((key, value) for key, value in trailing or () if not key.startswith("grpc-"))
