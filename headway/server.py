"""Starts a service: settings, telemetry, one interceptor, health, reflection, graceful drain.

Every service's `main` is `run(config, name, build)`. `build` gets a `Service` and returns what it serves.
"""

import asyncio
import contextlib
import gc
import importlib
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from headway import __version__, answer_trailers
from headway.auth import OPEN_TENANT, Authenticator
from headway.channels import channel_options
from headway.config import ServiceConfig, UpstreamConfig
from headway.deadline import Clock
from headway.errors import (
    BadInput,
    Draining,
    Failed,
    HeadwayError,
    PermissionDenied,
    Refused,
    TooManyCalls,
    to_trailers,
)
from headway.half_open import HalfOpenCalls, as_stream, metadata_bytes, refusing
from headway.lease import Secrets, follow_secrets
from headway.load_report import LoadMeter
from headway.standard_services import StandardServices, by_name, serves_debug
from headway.telemetry import UNKNOWN_TENANT, Metrics, MetricsEndpoint, Outcome, Span, outcome_of, watch_loop_lag
from headway.tls import CertificateError, ServerCertificates
from headway.tracing import Tracing, extract, start
from headway.upstream import UpstreamCredentials

log = logging.getLogger(__name__)

tenant_of_call: ContextVar[str] = ContextVar("tenant_of_call", default=OPEN_TENANT)
"""Who makes the call that is being handled; set by the interceptor."""

_OURS = "/headway.v1."
_KINDS = {"TextGeneration": "text", "ImageGeneration": "image", "SplatRendering": "splat"}
_OPERATING = {
    f"{_OURS}{method}"
    for method in ("Router/Drain", "Worker/Drain", "SplatRendering/LoadScene", "SplatRendering/UnloadScene")
}
_WORK = {"Generate", "Render", "RenderProgressive", "RenderPath"}


@dataclass(frozen=True, slots=True)
class Registration:
    """One gRPC service: its full name, and the call that adds it to a server."""

    name: str
    add: Callable[[grpc.aio.Server], None]


@dataclass(frozen=True, slots=True)
class Served:
    """What a service's `build` returns."""

    registrations: Sequence[Registration]
    drain: Callable[[], Awaitable[Any]] | None = None
    """Finishes what is in flight; called on SIGTERM before the server stops."""


@dataclass(frozen=True, slots=True)
class Service:
    """What `build` gets: the parts that every service has."""

    name: str
    metrics: Metrics
    tracing: Tracing
    clock: Clock
    closing: AsyncExitStack
    """What is entered here is left when the service stops."""
    authenticator: Authenticator
    load: LoadMeter


Build = Callable[[Service], Awaitable[Served]]


class CallGuard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Around every call of ours: identity, the limit on calls in flight, the trace, the error table, the outcome."""

    def __init__(self, service: Service, config: ServiceConfig, span: Span) -> None:
        self._service, self._authenticator, self._span = service, service.authenticator, span
        self._max, self._most_metadata = config.max_concurrent_rpcs, config.max_metadata_kib << 10
        self._half_open = HalfOpenCalls(most=self._max, patience_s=config.max_deadline_s)
        self.in_flight = 0
        self.draining = False

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        handler: Any = await continuation(details)
        if handler is None:
            return None
        if (size := metadata_bytes(details.invocation_metadata)) > self._most_metadata:
            return refusing(handler, BadInput("metadata", f"must be at most {self._most_metadata} bytes, not {size}"))
        if not details.method.startswith(_OURS):
            return self._half_open.bounding(handler)
        guarded = self._streaming if handler.response_streaming else self._unary
        return as_stream(handler, guarded(handler, details.method))

    def _unary(self, handler: Any, method: str) -> Callable[[Any, Any], Awaitable[Any]]:
        async def guarded(_: Any, context: Any) -> Any:
            async with self._call(context, method, handler) as request:
                return await handler.unary_unary(request, context)

        return guarded

    def _streaming(self, handler: Any, method: str) -> Callable[[Any, Any], AsyncIterator[Any]]:
        async def guarded(_: Any, context: Any) -> AsyncIterator[Any]:
            async with (
                self._call(context, method, handler) as request,
                contextlib.aclosing(handler.unary_stream(request, context)) as messages,
            ):
                async for message in messages:
                    yield message

        return guarded

    @asynccontextmanager
    async def _call(self, context: Any, method: str, handler: Any) -> AsyncIterator[Any]:
        """Around one call; yields its message."""
        kind, arrival_s = _kind_of(method), self._service.clock()
        answer_trailers.follow_call(context)
        metadata = tuple(context.invocation_metadata() or ())
        outcome, error, tenant = Outcome.OK, None, UNKNOWN_TENANT
        self._service.load.began()
        try:
            tenant = self._authenticator.tenant(metadata, context.auth_context())
            request = await self._half_open.message(context, handler.request_deserializer)
            arrival_s = self._service.clock()
            self._enter(tenant, method)
            self.in_flight += 1
            try:
                with self._service.tracing.span(self._span, extract(metadata), rpc_method=method.lstrip("/")):
                    yield request
            finally:
                self.in_flight -= 1
        except HeadwayError as failure:
            outcome, error = outcome_of(failure), failure
        except (asyncio.CancelledError, GeneratorExit):
            outcome = _how_it_left(context)
            raise
        except grpc.aio.AbortError:
            outcome = Outcome.FAILED
            raise
        except Exception as failure:
            log.exception("%s failed", method)
            outcome, error = Outcome.FAILED, Failed(f"the server failed: {type(failure).__name__}")
        finally:
            self._service.load.ended(outcome)
            if kind is not None:
                self._service.metrics.record_end(kind, outcome, self._service.clock() - arrival_s, error, tenant)
        load = () if kind is None else (self._service.load.trailer(refused=isinstance(error, Refused)),)
        if error is not None:
            await context.abort(error.status, error.message, (*to_trailers(error), *load))
        if load:
            answer_trailers.add(context, load)

    def _enter(self, tenant: str, method: str) -> None:
        tenant_of_call.set(tenant)
        if method in _OPERATING and not self._authenticator.may_operate(tenant):
            raise PermissionDenied(f"{tenant} is not one of the operators of this service, who alone may do this")
        if self.draining:
            raise Draining("the server drains and takes nothing new", retry_after_s=1.0)
        if self.in_flight >= self._max:
            raise TooManyCalls(f"{self._max} calls are in flight, which is the limit", retry_after_s=0.2)


def _kind_of(method: str) -> str | None:
    """The kind of work that a method does; None for methods that do none."""
    service, _, name = method.removeprefix(_OURS).partition("/")
    return _KINDS.get(service) if name in _WORK else None


def _how_it_left(context: Any) -> Outcome:
    remaining_s = context.time_remaining()
    return Outcome.EXPIRED if remaining_s is not None and remaining_s <= 0 else Outcome.CANCELLED


def run(config: ServiceConfig, name: str, build: Build, *, span: Span) -> None:
    """Serves until SIGTERM or SIGINT. Exits with code 1 and one readable line when the service cannot start."""
    logging.basicConfig(
        level=config.log_level.upper(), format=f"%(asctime)s {name} %(levelname)s %(message)s", stream=sys.stderr
    )
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            runner.run(serve(config, name, build, span=span, built=settle_memory))
        except StartError as error:
            sys.exit(f"headway-{name}: {error}")
        finally:
            gc.unfreeze()  # else libraries that count what they made complain at the end


def settle_memory() -> None:
    """Keeps what was built at start out of garbage collection, for good.

    A full collection looks through everything, a hundred thousand objects and more with the libraries of a worker, and
    holds up all calls for up to a tenth of a second each time.
    """
    gc.collect()
    gc.freeze()


def console_script(module: str, *, program: str, extra: str) -> None:
    """Runs `main` of a module whose libraries come with an extra; says which extra where one is missing."""
    try:
        main = importlib.import_module(module).main
    except ModuleNotFoundError as missing:
        sys.exit(f"{program} needs {missing.name}, which is not installed: pip install 'headway[{extra}]'")
    main()


class StartError(Exception):
    """The service cannot start; the message names the setting and what is wrong."""


def upstream_credentials(config: UpstreamConfig) -> UpstreamCredentials:
    """How a service shows itself to those that it calls. Raises `StartError`."""
    try:
        return UpstreamCredentials.from_config(config)
    except OSError as error:
        raise StartError(f"upstream: cannot read {error.filename}: {error.strerror}") from error
    except CertificateError as error:
        raise StartError(str(error)) from error


def mesh_secrets(path: Path | None) -> Secrets | None:
    """The secrets that routers and workers share, as the file is now; None for a mesh without. Raises `StartError`."""
    try:
        return None if path is None else follow_secrets(path)
    except (OSError, ValueError) as error:
        raise StartError(f"lease_secret: {error}") from error


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


async def _until_signalled() -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stopped.set)
    await stopped.wait()


async def serve(
    config: ServiceConfig,
    name: str,
    build: Build,
    *,
    span: Span,
    built: Callable[[], None] = lambda: None,
    ready: Callable[[int], None] = lambda port: None,
    until: Callable[[], Awaitable[Any]] = _until_signalled,
) -> None:
    """As `run`, inside a running event loop. Raises `StartError`.

    `built` is called when all is there, before calls are taken; `ready` is told the port once they are. The service
    drains and stops when `until` returns.
    """
    async with AsyncExitStack() as closing:
        service = _make_service(config, name, closing)
        guard = CallGuard(service, config, span)
        server = grpc.aio.server(interceptors=[guard], options=_server_options(config))
        port = _bind(server, config)
        served = await build(service)
        names = [item.name for item in served.registrations]
        added_to = by_name(server)
        standard = StandardServices(added_to, names, service.load, debug=serves_debug(config))
        for registration in served.registrations:
            registration.add(added_to)
        built()
        await server.start()
        await standard.serving()
        log.info("%s %s serves on %s", name, __version__, _shown_address(config.listen, port))
        ready(port)
        await until()
        await _drain(server, guard, standard, served, config.drain_s)


def _make_service(config: ServiceConfig, name: str, closing: AsyncExitStack) -> Service:
    metrics = Metrics(name, __version__)
    tracing = start(name, config.otlp_endpoint, version=__version__, instance=config.listen)
    closing.callback(tracing.shutdown)
    if config.metrics_port is not None:
        host = config.listen.rpartition(":")[0] if not config.listen.startswith("unix:") else "127.0.0.1"
        try:
            endpoint = MetricsEndpoint(metrics, host.strip("[]"), config.metrics_port)
        except OSError as error:
            raise StartError(
                f"metrics_port: cannot listen on {host}:{config.metrics_port}: {error.strerror}"
            ) from error
        closing.callback(endpoint.close)
        log.info("metrics on http://%s:%d/metrics", host, endpoint.port)
    lag = asyncio.create_task(watch_loop_lag(metrics))
    closing.callback(lag.cancel)
    clock = time.monotonic
    return Service(name, metrics, tracing, clock, closing, _authenticator(config), LoadMeter(clock))


def _authenticator(config: ServiceConfig) -> Authenticator:
    try:
        return Authenticator.from_config(config)
    except (OSError, ValueError) as error:
        raise StartError(f"api_keys or lease_secret: {error}") from error


def _server_options(config: ServiceConfig) -> list[tuple[str, int]]:
    return [
        *channel_options(config.max_message_mib << 20),
        ("grpc.max_metadata_size", config.max_metadata_kib << 10),
        ("grpc.so_reuseport", 0),  # else a busy port is shared in silence
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]


def _bind(server: grpc.aio.Server, config: ServiceConfig) -> int:
    try:
        certificates = ServerCertificates.from_config(config)
    except OSError as error:
        raise StartError(f"tls: cannot read {error.filename}: {error.strerror}") from error
    except CertificateError as error:
        raise StartError(str(error)) from error
    try:
        if certificates is None:
            return server.add_insecure_port(config.listen)
        return server.add_secure_port(config.listen, certificates.credentials())
    except RuntimeError as error:
        raise StartError(f"listen: cannot listen on {config.listen}; is the port in use?") from error


def _shown_address(listen: str, port: int) -> str:
    return listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"


async def _drain(
    server: grpc.aio.Server,
    guard: CallGuard,
    standard: StandardServices,
    served: Served,
    drain_s: float,
) -> None:
    log.info("draining: %d calls in flight, at most %.1f s", guard.in_flight, drain_s)
    await standard.drain()
    guard.draining = True
    if served.drain is None:
        await server.stop(grace=drain_s)
    else:  # streams of state never end by themselves, so what is in flight is waited for first
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(served.drain(), drain_s)
        await server.stop(grace=0.5)
    log.info("stopped")
