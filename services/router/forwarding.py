"""Passes a request to the workers in the order of their rank, and their bytes back."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc

from headway.channels import onward
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
from headway.telemetry import Span, Tracing
from headway.v1 import errors_pb2
from services.router.member import Member
from services.router.methods import Method
from services.router.placement import Placement
from services.router.pool import Pool, kind_name

_MOST_ATTEMPTS = 4
_COME_BACK_S = 0.5
_ASK_ANOTHER = {
    errors_pb2.ERROR_REASON_SHED,
    errors_pb2.ERROR_REASON_TOO_MANY_CALLS,
    errors_pb2.ERROR_REASON_DRAINING,
    errors_pb2.ERROR_REASON_WORKER_LOST,
}

Trailers = Callable[[tuple[tuple[str, str | bytes], ...]], None]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A call that is passed on."""

    method: Method
    request: bytes
    budget: Budget
    trailers: Trailers
    """Is told the trailing metadata of the worker that served."""


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

    def __init__(self, pool: Pool, tracing: Tracing, clock: Clock) -> None:
        self._pool, self._tracing, self._clock = pool, tracing, clock

    async def messages(self, outgoing: Outgoing, placements: Sequence[Placement]) -> AsyncGenerator[bytes, None]:
        """The answer's messages; one where the method is unary.

        Where a worker refuses or is lost before its first message, the next one is asked, inside the same budget.
        When all refuse, raises the refusal with the soonest retry. Leaving early cancels the worker's call.
        """
        refusals: list[HeadwayError] = []
        for attempt, placement in enumerate(placements[:_MOST_ATTEMPTS], 1):
            member = self._pool.member(placement.view)
            if member is None:
                continue
            try:
                async with aclosing(self._ask(outgoing, member, placement, attempt)) as messages:
                    async for message in messages:
                        yield message if attempt == 1 else _with_attempts(outgoing.method, message, attempt)
                return
            except _NotBegun as refused:
                refusals.append(refused.error)
            except HeadwayError as error:
                # What an earlier worker said is better news than that no time is left to ask the next one.
                if refusals and error.status is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise _soonest(refusals) from error
                raise
        raise _soonest(refusals) if refusals else no_worker(kind_name(outgoing.method.kind))

    async def _ask(
        self, outgoing: Outgoing, member: Member, placement: Placement, attempt: int
    ) -> AsyncGenerator[bytes, None]:
        span = self._tracing.span(
            Span.ROUTER_FORWARD, worker=placement.view.description.worker_id, attempt=attempt, rung=placement.rung.label
        )
        with span, member.sending(placement.load) as sent:
            call = _open(member.channel, outgoing, onward(outgoing.budget, sent.sent_s, member.metadata).kwargs())
            try:
                async for message in _received(call, outgoing.method):
                    sent.admitted_s = sent.admitted_s or self._clock()
                    yield message
                outgoing.trailers(_passed_on(await call.trailing_metadata()))
            except grpc.aio.AioRpcError as error:
                told = _told(error, placement.view.description.worker_id, begun=sent.admitted_s is not None)
                raise _with_the_hop(told, outgoing.budget, sent.sent_s) from error
            finally:
                call.cancel()


def _open(channel: grpc.aio.Channel, outgoing: Outgoing, options: dict[str, Any]) -> Any:
    make: Any = channel.unary_stream if outgoing.method.streams else channel.unary_unary
    return make(outgoing.method.path)(outgoing.request, **options)


async def _received(call: Any, method: Method) -> AsyncIterator[bytes]:
    if not method.streams:
        yield await call
        return
    async for message in call:
        yield message


def _told(error: grpc.aio.AioRpcError, worker_id: str, *, begun: bool) -> Exception:
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
    return _NotBegun(told) if not begun and told.reason in _ASK_ANOTHER else told


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


def _soonest(refusals: Sequence[HeadwayError]) -> HeadwayError:
    """The refusal that lets the caller come back first; one without advice comes last."""
    return min(refusals, key=_retry_s)


def _retry_s(refusal: HeadwayError) -> float:
    return float("inf") if refusal.retry_after_s is None else refusal.retry_after_s


def _with_attempts(method: Method, message: bytes, attempts: int) -> bytes:
    """The message, saying in its `Served` how many workers were asked; as it was when it has none."""
    parsed = method.response.FromString(message)
    served = method.served(parsed)
    if served is None:
        return message
    served.attempts = attempts
    return parsed.SerializeToString()


def _passed_on(trailing: Any) -> tuple[tuple[str, str | bytes], ...]:
    return tuple((key, value) for key, value in trailing or () if not key.startswith("grpc-"))
