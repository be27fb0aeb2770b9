"""The router as a gateway's endpoint picker: which worker an HTTP request goes to, and how it went there.

    request headers ─► body, to the end of its first message ─► the worker, or the refusal ─► response ─► its status

The gateway sends the bytes to the worker itself. So what needs them here is not for such requests: kept results, shared
flights, waiting for a yes, and going on with another worker.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass
from typing import Any

from headway.auth import Authenticator
from headway.channels import API_KEY_HEADER
from headway.deadline import Budget, Clock, budget_of
from headway.errors import BadInput, Cancelled, Expired, Failed, HeadwayError, TooManyCalls, Unimplemented
from headway.lease import HEADER as LEASE_HEADER
from headway.server import Registration, tenant_of_call
from headway.telemetry import UNKNOWN_TENANT, Outcome, Span, outcome_of
from headway.tracing import Metadata, extract, inject
from headway.v1 import ext_proc_pb2, ext_proc_pb2_grpc
from services.router.ext_proc import (
    SERVICE,
    Request,
    Response,
    body_pieces,
    passed_on,
    read_headers,
    refusal,
    routed,
    served_by,
    subset,
)
from services.router.feasible import feasible
from services.router.forwarding import no_worker
from services.router.http_call import Ended, Timeout, first_message, one, write_timeout
from services.router.ledger import Sent
from services.router.member import Member
from services.router.methods import PASSED_ON, Method
from services.router.placement import Placement
from services.router.pool import Pool, kind_name
from services.router.quotas import device_ms
from services.router.servicer import Parts, ranked

log = logging.getLogger(__name__)

_METHODS = {method.path: method for method in PASSED_ON}


@dataclass(slots=True)
class _Exchange:
    """One HTTP request, as far as it is known. Mutated as its parts come."""

    arrival_s: float
    method: Method | None = None
    tenant: str = UNKNOWN_TENANT
    budget: Budget | None = None
    placed: bool = False
    """It was sent to a worker, so that the answer is the worker's."""
    ended: Ended | None = None
    error: HeadwayError | None = None

    def outcome(self, now_s: float) -> Outcome:
        """How it ended, or that its caller went away."""
        if self.error is not None:
            return outcome_of(self.error)
        if self.ended is not None:
            return Outcome.OK
        late = self.budget is not None and now_s >= self.budget.deadline_s
        return Outcome.EXPIRED if late else Outcome.CANCELLED


@dataclass(frozen=True, slots=True)
class _Head:
    """What a request's headers say."""

    method: Method
    metadata: Metadata
    budget: Budget
    endpoints: frozenset[str] | None
    """The only ones that may be picked; None: any."""
    response_body: ext_proc_pb2.BodySendMode


@dataclass(frozen=True, slots=True)
class _Begun:
    """A body as far as it has come: at least its first message."""

    message: bytes
    body: bytes
    ended: bool


class _InHand:
    """A request in the books of the worker that has it, until `close`."""

    def __init__(self, pool: Pool, placements: Sequence[Placement], clock: Clock) -> None:
        """It goes to the first of `placements`, which are known to the pool, or to another where that fails."""
        self._pool, self._clock = pool, clock
        self._placements = {placement.view.address: placement for placement in placements}
        self._member, self._sent = self._open(placements[0])

    def _open(self, placement: Placement) -> tuple[Member, Sent]:
        member = self._pool.member(placement.view)
        assert member is not None  # nothing was awaited since the placements were looked up
        return member, member.opened(placement.load)

    def answering(self, address: str | None) -> None:
        """The response began, from `address` where the gateway says so."""
        placement = None if address in (None, self._member.address) else self._placements.get(address or "")
        if placement is not None and self._pool.member(placement.view) is not None:
            self.close()
            self._member, self._sent = self._open(placement)
        self._sent.admitted_s = self._sent.admitted_s or self._clock()

    def over(self, error: HeadwayError | None) -> None:
        """The response ended; before `close`."""
        if error is None:
            self._member.answered(self._sent)
        else:
            self._member.failed(self._sent, error)

    def close(self) -> None:
        """Takes it out of the books."""
        self._member.closed(self._sent)


class EndpointPicker(ext_proc_pb2_grpc.ExternalProcessorServicer):
    """Envoy's `ExternalProcessor`, as the Gateway API inference extension uses it."""

    def __init__(self, parts: Parts, authenticator: Authenticator) -> None:
        self._parts, self._authenticator = parts, authenticator
        self._in_flight = 0
        self._told_operators = False

    async def Process(self, request_iterator: AsyncIterator[Request], context: Any) -> AsyncGenerator[Response, None]:
        """One HTTP request: its parts in, what becomes of each out."""
        exchange = _Exchange(self._parts.clock())
        try:
            incoming: Any = aiter(request_iterator)  # gRPC's is a generator, which is often left before its end
            async with aclosing(incoming), aclosing(self._answers(exchange, incoming, context)) as answers:
                async for answer in answers:
                    yield answer
        except HeadwayError as error:
            exchange.error = error
        except Exception as error:
            log.exception("picking an endpoint failed")
            exchange.error = Failed(f"the router failed: {type(error).__name__}")
        finally:
            self._record(exchange)
        if exchange.error is not None and not exchange.placed:
            yield refusal(exchange.error)

    async def _answers(
        self, exchange: _Exchange, incoming: AsyncIterator[Request], context: Any
    ) -> AsyncGenerator[Response, None]:
        parts = self._parts
        with self._one_more(), parts.calls.call():
            if (first := await anext(incoming, None)) is None:
                return
            head = self._read_head(exchange, first, context)
            path = head.method.path.lstrip("/")
            with parts.tracing.span(Span.ROUTER_CALL, extract(head.metadata), rpc_method=path):
                begun = await self._begin(head, incoming)
                placements = self._place(head, begun.message)
                async with aclosing(self._followed(exchange, head, begun, placements, incoming)) as answers:
                    async for answer in answers:
                        yield answer

    @contextmanager
    def _one_more(self) -> Iterator[None]:
        most = self._parts.config.max_concurrent_rpcs
        if self._in_flight >= most:
            raise TooManyCalls(f"{most} calls are in flight, which is the limit", retry_after_s=0.2)
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def _read_head(self, exchange: _Exchange, first: Request, context: Any) -> _Head:
        """Fills in the exchange. Raises `HeadwayError` for what is not to be placed."""
        metadata = read_headers(first.request_headers.headers)
        method = exchange.method = _METHODS.get(one(metadata, ":path") or "")
        exchange.tenant = self._authenticator.tenant(metadata, context.auth_context())
        tenant_of_call.set(exchange.tenant)
        if method is None:
            raise Unimplemented(
                "the endpoint picker places generations, frames and Tokenize; call a router for the rest"
            )
        config = self._parts.config
        exchange.budget = budget_of(
            Timeout.read(one(metadata, "grpc-timeout")),
            max_deadline_s=config.max_deadline_s,
            reserve_s=config.return_reserve_ms / 1000,
            clock=self._parts.clock,
        )
        self._parts.metrics.budget.labels(kind_name(method.kind)).observe(exchange.budget.total_s)
        return _Head(method, metadata, exchange.budget, subset(first), self._response_body(first))

    def _response_body(self, first: Request) -> ext_proc_pb2.BodySendMode:
        """As `_checked_modes`; the first gateway that is set up wrongly is logged, for only its operators can help."""
        try:
            return _checked_modes(first)
        except Unimplemented as error:
            if not self._told_operators:
                log.error("endpoint_picker: %s", error.message)
            self._told_operators = True
            raise

    async def _begin(self, head: _Head, incoming: AsyncIterator[Request]) -> _Begun:
        """Waits for the first message of the body, no longer than the budget lasts. Raises `HeadwayError`."""
        try:
            async with asyncio.timeout(head.budget.remaining_s(self._parts.clock())):
                return await _first_of_body(
                    incoming, one(head.metadata, "grpc-encoding"), self._parts.config.max_message_mib << 20
                )
        except TimeoutError as error:
            raise Expired("the deadline passed before the request was here") from error

    def _place(self, head: _Head, message: bytes) -> list[Placement]:
        """The workers to send it to, best first; at least one. Raises `HeadwayError`."""
        parts, method = self._parts, head.method
        ask = method.ask(method.read_request(message), head.budget)
        found = ranked(ask, parts, within=head.endpoints)
        known = [placement for placement in found if parts.pool.member(placement.view) is not None]
        if not known:
            raise no_worker(kind_name(method.kind))
        if not method.uses_device:
            return known
        return feasible(known, head.budget, parts.clock(), parts.config.rung_quantile)

    async def _followed(
        self,
        exchange: _Exchange,
        head: _Head,
        begun: _Begun,
        placements: Sequence[Placement],
        incoming: AsyncIterator[Request],
    ) -> AsyncGenerator[Response, None]:
        """Sends it there and follows it, charged to the tenant. Raises what the worker's answer ended with."""
        parts, best = self._parts, placements[0]
        cost_ms = device_ms(best) if head.method.uses_device else 0.0
        chosen = placements[: 1 + parts.config.endpoint_picker_spares]
        with (
            parts.quotas.call(exchange.tenant, cost_ms, best.finish.mean_ms / 1000),
            closing(_InHand(parts.pool, chosen, parts.clock)) as in_hand,
        ):
            answer = self._routed(exchange, head, chosen)
            exchange.placed = True
            yield answer
            for piece in body_pieces(begun.body, ended=begun.ended):
                yield Response(request_body=piece)
            async for part in incoming:
                exchange.ended = _noted(part, in_hand)
                for answer in passed_on(part, head.response_body):
                    yield answer
                if exchange.ended is not None:
                    break
            if exchange.ended is not None:
                error = exchange.ended.error()
                in_hand.over(error)
                if error is not None:
                    raise error

    def _routed(self, exchange: _Exchange, head: _Head, chosen: Sequence[Placement]) -> Response:
        """The worker is shown the router's key and a lease, never the caller's, and what is left of the budget."""
        now_s = self._parts.clock()
        head.budget.check(now_s)
        worker_ids = [placement.view.description.worker_id for placement in chosen]
        shown = self._parts.identity.picked(exchange.tenant, worker_ids)
        left = ("grpc-timeout", write_timeout(head.budget.remaining_s(now_s)))
        names = {name for name, _ in shown}
        removed = [name for name in (API_KEY_HEADER, LEASE_HEADER) if name not in names]
        return routed([placement.view.address for placement in chosen], inject((*shown, left)), removed)

    def _record(self, exchange: _Exchange) -> None:
        method, now_s = exchange.method, self._parts.clock()
        if method is not None and method.uses_device:
            self._parts.metrics.record_end(
                kind_name(method.kind),
                exchange.outcome(now_s),
                now_s - exchange.arrival_s,
                exchange.error,
                exchange.tenant,
            )


def _checked_modes(first: Request) -> ext_proc_pb2.BodySendMode:
    """How the response's body comes. Raises `BadInput`, and `Unimplemented` where bodies come in another way."""
    if not first.HasField("request_headers") or first.request_headers.end_of_stream:
        raise BadInput("request", "must begin with its headers, and have a message")
    if not first.HasField("protocol_config"):
        return ext_proc_pb2.FULL_DUPLEX_STREAMED  # the protocol asks for it, and older gateways do not say
    modes = first.protocol_config
    if modes.request_body_mode != ext_proc_pb2.FULL_DUPLEX_STREAMED:
        names = ext_proc_pb2.BodySendMode.DESCRIPTOR.values_by_number
        known = names.get(modes.request_body_mode)
        name = str(modes.request_body_mode) if known is None else known.name
        raise Unimplemented(
            f"the gateway sends request bodies as {name}; the endpoint picker needs request_body_mode: "
            "FULL_DUPLEX_STREAMED"
        )
    return modes.response_body_mode


async def _first_of_body(incoming: AsyncIterator[Request], encoding: str | None, most_bytes: int) -> _Begun:
    body = bytearray()
    async for part in incoming:
        body += part.request_body.body
        message = first_message(body, encoding, most_bytes)
        ended = part.request_body.end_of_stream
        if message is not None:
            return _Begun(message, bytes(body), ended)
        if ended or not part.HasField("request_body"):
            raise BadInput("request", "ended before its message was whole")
    raise Cancelled("the caller went away before the request was here")


def _noted(part: Request, in_hand: _InHand) -> Ended | None:
    """What a part of the response says; how it ended, where that is in it."""
    if part.HasField("response_headers"):
        in_hand.answering(served_by(part))
        headers = part.response_headers
        return Ended.read(read_headers(headers.headers)) if headers.end_of_stream else None
    if part.HasField("response_trailers"):
        return Ended.read(read_headers(part.response_trailers.trailers))
    return None


def registration(parts: Parts, authenticator: Authenticator) -> Registration:
    """The service, for a router that is a gateway's endpoint picker."""
    picker = EndpointPicker(parts, authenticator)
    return Registration(
        SERVICE, lambda server: ext_proc_pb2_grpc.add_ExternalProcessorServicer_to_server(picker, server)
    )
