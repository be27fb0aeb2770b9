"""The workers' services as the router serves them, and the router's own."""

from collections.abc import AsyncGenerator
from collections.abc import Set as AbstractSet
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import grpc

from headway import answer_trailers
from headway.deadline import Budget, Clock, budget_of, is_promised
from headway.errors import HeadwayError
from headway.lease import TTL_S
from headway.server import Registration, tenant_of_call
from headway.telemetry import Answer as CountedAnswer
from headway.telemetry import CacheResult, Metrics, Span
from headway.tracing import Tracing
from headway.v1 import common_pb2, keda_pb2_grpc, router_pb2, router_pb2_grpc, splat_pb2
from services.router import keda
from services.router.asking import Asker
from services.router.calls import Calls
from services.router.config import RouterConfig
from services.router.everywhere import Everywhere
from services.router.forwarding import Outgoing, no_worker
from services.router.identity import Identity
from services.router.keda import KedaServicer
from services.router.listing import Lister
from services.router.methods import LISTINGS, PASSED_ON, Listing, Method, read_pick
from services.router.placement import Ask, Placement
from services.router.policies import Placer
from services.router.pool import Pool, kind_name
from services.router.prefixes import KnownPrompts
from services.router.quotas import Quotas, device_ms
from services.router.replay import Answer, replay
from services.router.result_cache import ResultCache
from services.router.scaling import ScaleSignal
from services.router.single_flight import Flights

_MOST_CANDIDATES = 4


@dataclass(frozen=True, slots=True)
class Parts:
    """What the router is made of."""

    config: RouterConfig
    pool: Pool
    placer: Placer
    asker: Asker
    lister: Lister
    everywhere: Everywhere
    cache: ResultCache | None
    flights: Flights
    prompts: KnownPrompts
    quotas: Quotas
    signal: ScaleSignal
    identity: Identity
    calls: Calls
    metrics: Metrics
    tracing: Tracing
    clock: Clock

    def budget(self, context: Any) -> Budget:
        """The budget of a call; take it on the handler's first line. Raises `Expired`."""
        budget = budget_of(
            context,
            max_deadline_s=self.config.max_deadline_s,
            reserve_s=self.config.return_reserve_ms / 1000,
            clock=self.clock,
        )
        return replace(budget, promised=True) if is_promised(context) else budget


def ranked(ask: Ask, parts: Parts, *, probe: bool = True, within: AbstractSet[str] | None = None) -> list[Placement]:
    """The workers to ask as things stand, best first; at least one. Raises `NoWorker` and as `Placer.place` does.

    `probe`: the call will be made here, so that a worker whose calls failed can be tried with it. `within`: the
    addresses to choose from; None: all.
    """
    with parts.tracing.span(Span.ROUTER_PICK):
        roster = parts.pool.roster() if within is None else parts.pool.roster().within(within)
        shared = parts.prompts.shared(ask.prompt, roster.asset_hash(ask), tenant_of_call.get())
        placements = parts.placer.place(ask, roster, parts.clock(), shared=shared, probe=probe)
    if not placements:
        raise no_worker(kind_name(ask.kind))
    return placements


class Proxy:
    """One method of a worker, over all workers: takes and gives bytes, and parses the request alone."""

    def __init__(self, method: Method, parts: Parts) -> None:
        self._method, self._parts = method, parts

    async def stream(self, raw: bytes, context: Any) -> AsyncGenerator[bytes, None]:
        """The answer's messages: kept ones when they will do, else a worker's."""
        parts, method = self._parts, self._method
        budget = parts.budget(context)
        with parts.calls.call():
            parts.metrics.budget.labels(kind_name(method.kind)).observe(budget.total_s)
            request = method.read_request(raw)
            ask = method.ask(request, budget)
            placements = ranked(ask, parts)
            answer_so_far, trailers = method.continuation(raw, request), context.set_trailing_metadata
            priority = ask.level.priority or common_pb2.PRIORITY_NORMAL
            outgoing = Outgoing(method, answer_so_far, budget, partial(self._rank_again, ask), trailers, priority)
            if method.reproducible(request):
                joins = parts.config.single_flight and method.may_join(request, placements[0].rung)
                find = self._joined if joins else self._cached
                answer = find(request, outgoing, placements)
            else:
                answer = self._worked(outgoing, placements)
            async with aclosing(answer) as messages:
                async for message in messages:
                    yield message

    async def _worked(self, outgoing: Outgoing, placements: list[Placement]) -> AsyncGenerator[bytes, None]:
        """A worker's answer, charged to the tenant."""
        parts, best = self._parts, placements[0]
        cost_ms = device_ms(best) if self._method.uses_device else 0.0
        with parts.quotas.call(tenant_of_call.get(), cost_ms, best.finish.mean_ms / 1000):
            async with aclosing(parts.asker.messages(outgoing, placements)) as messages:
                async for message in messages:
                    yield message

    async def unary(self, raw: bytes, context: Any) -> bytes:
        """The one message of the answer."""
        async with aclosing(self.stream(raw, context)) as messages:
            return [message async for message in messages][-1]

    def _rank_again(self, ask: Ask) -> list[Placement]:
        """For an answer that is under way: none may be able to go on now."""
        try:
            return ranked(ask, self._parts)
        except HeadwayError:
            return []

    async def _joined(
        self, request: Any, outgoing: Outgoing, placements: list[Placement]
    ) -> AsyncGenerator[bytes, None]:
        """The answer of the same request where one is in flight and will do; else its own, which others may join."""
        parts, method, budget = self._parts, self._method, outgoing.budget
        key = parts.flights.key(method, request, tenant_of_call.get(), placements[0])
        if (flight := parts.flights.joinable(key, placements[0], budget)) is not None:
            parts.metrics.result_cache.labels(kind_name(method.kind), CacheResult.JOINED).inc()
            if (found := await parts.flights.answer(flight, method, placements[0], budget)) is not None:
                for message in self._replayed(found, budget, request.service_level):
                    yield message
                return
            placements = [*outgoing.rank()] or placements  # time has passed
        with parts.flights.leading(key, placements[0]) as flight:
            async with aclosing(self._cached(request, outgoing, placements)) as messages:
                async for message in messages:
                    flight.recording.add(message)
                    yield message
            flight.land()

    async def _cached(
        self, request: Any, outgoing: Outgoing, placements: list[Placement]
    ) -> AsyncGenerator[bytes, None]:
        """A kept answer that will do, else a worker's, which is kept."""
        method, tenant, cache = self._method, tenant_of_call.get(), self._parts.cache
        if cache is None:
            async with aclosing(self._worked(outgoing, placements)) as messages:
                async for message in messages:
                    yield message
            return
        found = await cache.find(method, request, tenant, placements[0], outgoing.budget)
        if found is not None:
            for message in self._replayed(found, outgoing.budget, request.service_level):
                yield message
            return
        recording = cache.recording()
        async with aclosing(self._worked(outgoing, placements)) as messages:
            async for message in messages:
                recording.add(message)
                yield message
        if recording.messages is not None:
            cache.keep(method, request, tenant, recording.messages)

    def _replayed(self, answer: Answer, budget: Budget, level: common_pb2.ServiceLevel) -> list[bytes]:
        parts, method = self._parts, self._method
        now_s = parts.clock()
        messages = replay(method, answer, budget, now_s)
        slack_s, served = budget.remaining_s(now_s), answer.served
        priority, tenant = level.priority or common_pb2.PRIORITY_NORMAL, tenant_of_call.get()
        counted = CountedAnswer(served.rung.label, "cached", served.quality, slack_s, slack_s, priority, tenant)
        parts.metrics.record_answer(kind_name(method.kind), counted)
        answer_trailers.tell(served)
        return messages


def _candidate(placement: Placement) -> router_pb2.Candidate:
    return router_pb2.Candidate(
        address=placement.view.address,
        worker_id=placement.view.description.worker_id,
        predicted_p50_ms=placement.finish.quantile_ms(0.5),
        predicted_p99_ms=placement.finish.quantile_ms(0.99),
        rung=placement.rung.to_proto(),
    )


class RouterServicer(router_pb2_grpc.RouterServicer):
    """The router's own service."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def Pick(self, request: router_pb2.PickRequest, context: Any) -> router_pb2.PickResponse:
        """The call's own deadline is that of the work: a client asks with the budget it will stream with."""
        parts = self._parts
        budget = parts.budget(context)
        with parts.calls.call():
            placements = ranked(read_pick(request, budget), parts, probe=False)[:_MOST_CANDIDATES]
            best = placements[0]
            parts.quotas.pick(tenant_of_call.get(), device_ms(best), best.finish.quantile_ms(0.99) / 1000)
            worker_ids = [placement.view.description.worker_id for placement in placements]
            member = parts.pool.member(best.view)
            if member is not None:
                member.expect(best.load)
            response = router_pb2.PickResponse(
                candidates=[_candidate(placement) for placement in placements],
                lease=parts.identity.lease(tenant_of_call.get(), worker_ids),
            )
            response.lease_ttl.FromMilliseconds(round(TTL_S * 1000))
            return response

    async def ListWorkers(self, request: router_pb2.ListWorkersRequest, context: Any) -> router_pb2.ListWorkersResponse:
        cache = self._parts.cache
        return router_pb2.ListWorkersResponse(
            workers=self._parts.pool.entries(), prefix_cache_reachable=cache is not None and cache.reachable
        )

    async def Drain(self, request: router_pb2.DrainRouterRequest, context: Any) -> router_pb2.DrainRouterResponse:
        return router_pb2.DrainRouterResponse(finished=await self._parts.calls.drain())


def registrations(parts: Parts) -> list[Registration]:
    """Every service of the router: the workers' own, by bytes, and `Router`."""
    handlers: dict[str, dict[str, Any]] = {}
    for method in PASSED_ON:
        handlers.setdefault(method.service, {})[method.name] = _proxy_handler(method, parts)
    for listing in LISTINGS:
        handlers[listing.service][listing.name] = _listing_handler(listing, parts)
    handlers["SplatRendering"] |= _everywhere_handlers(parts)

    def add_router(server: grpc.aio.Server) -> None:
        router_pb2_grpc.add_RouterServicer_to_server(RouterServicer(parts), server)

    def add_scaler(server: grpc.aio.Server) -> None:
        keda_pb2_grpc.add_ExternalScalerServicer_to_server(KedaServicer(parts.signal), server)

    own = [Registration("headway.v1.Router", add_router), Registration(keda.SERVICE, add_scaler)]
    return [*(_registration(f"headway.v1.{service}", by_name) for service, by_name in handlers.items()), *own]


def _registration(name: str, handlers: dict[str, Any]) -> Registration:
    def add(server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))

    return Registration(name, add)


def _proxy_handler(method: Method, parts: Parts) -> Any:
    proxy = Proxy(method, parts)
    if method.streams:
        return grpc.unary_stream_rpc_method_handler(proxy.stream)
    return grpc.unary_unary_rpc_method_handler(proxy.unary)


def _listing_handler(listing: Listing, parts: Parts) -> Any:
    async def list_all(raw: bytes, context: Any) -> Any:
        budget = parts.budget(context)
        with parts.calls.call():
            return await parts.lister.merged(listing, budget)

    return grpc.unary_unary_rpc_method_handler(list_all, response_serializer=listing.response.SerializeToString)


def _everywhere_handlers(parts: Parts) -> dict[str, Any]:
    """What is done on every splat worker."""

    async def load(raw: bytes, context: Any) -> AsyncGenerator[Any, None]:
        budget = parts.budget(context)
        with parts.calls.call():
            async with aclosing(parts.everywhere.load(raw, budget)) as messages:
                async for message in messages:
                    yield message

    async def unload(raw: bytes, context: Any) -> Any:
        budget = parts.budget(context)
        with parts.calls.call():
            return await parts.everywhere.unload(raw, budget)

    return {
        "LoadScene": grpc.unary_stream_rpc_method_handler(
            load, response_serializer=splat_pb2.LoadSceneResponse.SerializeToString
        ),
        "UnloadScene": grpc.unary_unary_rpc_method_handler(
            unload, response_serializer=splat_pb2.UnloadSceneResponse.SerializeToString
        ),
    }
