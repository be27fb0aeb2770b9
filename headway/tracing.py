"""Traces: OpenTelemetry spans, exported over OTLP/gRPC only when an endpoint is set.

When it is not, a span costs next to nothing and a caller's trace context is still passed on. What spans and their
attributes are called is declared in `headway.telemetry`.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter, Setter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from headway.errors import HeadwayError
from headway.telemetry import Attribute, Span

Metadata = Sequence[tuple[str, str | bytes]]
AttributeValue = str | bool | int | float

_KINDS: Final = {
    Span.CLIENT_CALL: trace.SpanKind.CLIENT,
    Span.ROUTER_FORWARD: trace.SpanKind.CLIENT,
    Span.CACHE_GET: trace.SpanKind.CLIENT,
    Span.CACHE_PUT: trace.SpanKind.CLIENT,
    Span.ROUTER_CALL: trace.SpanKind.SERVER,
    Span.WORKER_CALL: trace.SpanKind.SERVER,
    Span.CACHE_CALL: trace.SpanKind.SERVER,
}


class Tracing:
    """Makes spans for one process; made by `start`. Safe to use from any thread."""

    def __init__(self, provider: TracerProvider | None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("headway") if provider is not None else None
        self._epoch_less_monotonic_s = time.time() - time.monotonic()

    @contextmanager
    def span(self, name: Span, parent: Context | None = None, **attributes: AttributeValue) -> Iterator[trace.Span]:
        """Times the block and makes its span the current one; an exception marks it failed, by its kind alone: what it
        says may quote the request.

        `parent` is what `extract` gave; None takes the current span, which other threads do not see.
        `attributes` are members of `Attribute` in lower case.
        """
        if self._tracer is None:
            with _attached(parent):
                yield trace.INVALID_SPAN
            return
        kind = _KINDS.get(name, trace.SpanKind.INTERNAL)
        with self._tracer.start_as_current_span(
            name, parent, kind, _named(attributes), record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except Exception as error:
                span.set_status(trace.StatusCode.ERROR, _kind_of_failure(error))
                raise

    def note(self, **attributes: AttributeValue) -> None:
        """Adds attributes to the current span; named as in `span`."""
        if self._tracer is not None:
            trace.get_current_span().set_attributes(_named(attributes))

    def record(
        self, name: Span, parent: Context | None, began_s: float, ended_s: float, **attributes: AttributeValue
    ) -> None:
        """Adds a span that is over already, from monotonic seconds, such as a wait in a queue."""
        if self._tracer is None:
            return
        kind = _KINDS.get(name, trace.SpanKind.INTERNAL)
        span = self._tracer.start_span(name, parent, kind, _named(attributes), start_time=self._epoch_ns(began_s))
        span.end(self._epoch_ns(ended_s))

    def shutdown(self) -> None:
        """Sends what is left and stops. Blocks for at most a few seconds when the collector is gone."""
        if self._provider is not None:
            self._provider.shutdown()

    def _epoch_ns(self, monotonic_s: float) -> int:
        return int((monotonic_s + self._epoch_less_monotonic_s) * 1e9)


def _kind_of_failure(error: Exception) -> str:
    return error.reason_name if isinstance(error, HeadwayError) else type(error).__name__


def start(service: str, otlp_endpoint: str | None, *, version: str, instance: str) -> Tracing:
    """Tracing for one process, sent to the collector at `otlp_endpoint`; None sends nothing."""
    if otlp_endpoint is None:
        return Tracing(None)
    about = {
        "service.name": f"headway-{service}",
        "service.version": version,
        "service.instance.id": instance,
    }
    provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_exporter(otlp_endpoint), schedule_delay_millis=1000))
    return Tracing(provider)


def _exporter(otlp_endpoint: str) -> SpanExporter:
    # Imported here: it takes a fifth of a second that a process which exports nothing need not spend.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(otlp_endpoint, insecure=otlp_endpoint.startswith("http://"), timeout=2)


def _named(attributes: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
    return {Attribute[name.upper()].value: value for name, value in attributes.items()}


@contextmanager
def _attached(parent: Context | None) -> Iterator[None]:
    if parent is None:
        yield
        return
    token = otel_context.attach(parent)
    try:
        yield
    finally:
        otel_context.detach(token)


class _MetadataGetter(Getter[Metadata]):
    def get(self, carrier: Metadata, key: str) -> list[str] | None:
        return [value for name, value in carrier if name == key and isinstance(value, str)] or None

    def keys(self, carrier: Metadata) -> list[str]:
        return [name for name, _ in carrier]


class _ListSetter(Setter[list[tuple[str, str | bytes]]]):
    def set(self, carrier: list[tuple[str, str | bytes]], key: str, value: str) -> None:
        carrier.append((key, value))


_W3C: Final = TraceContextTextMapPropagator()
_GETTER: Final = _MetadataGetter()
_SETTER: Final = _ListSetter()


def extract(metadata: Metadata) -> Context | None:
    """The caller's trace context (W3C traceparent) in call metadata; None when it is absent or malformed."""
    context = _W3C.extract(metadata, Context(), _GETTER)
    return context if trace.get_current_span(context).get_span_context().is_valid else None


def inject(metadata: Iterable[tuple[str, str | bytes]] = (), context: Context | None = None) -> Metadata:
    """`metadata` with the trace context (None: the current one) in place of any it held."""
    kept = [item for item in metadata if item[0] not in _W3C.fields]
    _W3C.inject(kept, context, _SETTER)
    return tuple(kept)
