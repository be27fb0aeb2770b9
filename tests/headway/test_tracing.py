import threading
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from headway.telemetry import Attribute, Span
from headway.tracing import extract, inject, start

LONG_S = 30.0
"""Far beyond the exporter's own timeout, and below what it takes when it tries again and again."""
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """A real OTLP/gRPC endpoint that keeps the spans it is sent."""

    def __init__(self) -> None:
        self.spans: list[trace_pb2.Span] = []
        self.server = grpc.server(futures.ThreadPoolExecutor(1))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self.server)
        self.url = f"http://127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def Export(self, request, context):  # noqa: N802 - the contract's name
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.server.stop(None).wait()


def test_spans_reach_the_collector_as_one_trace(collector: Collector) -> None:
    tracing = start("test", collector.url, version="0", instance="a")
    parent = extract((("traceparent", PARENT), ("key-bin", b"\x00")))
    with tracing.span(Span.WORKER_CALL, parent, kind="text", budget_ms=12.5):
        sent = dict(inject((("traceparent", "stale"), ("a", "b"))))
        tracing.record(Span.WORKER_QUEUE, None, 10.0, 10.25, batch=3)
    with pytest.raises(ValueError, match="boom"), tracing.span(Span.WORKER_STEP, parent):
        raise ValueError("boom")
    tracing.shutdown()
    spans = {span.name: span for span in collector.spans}
    call, queue = spans[Span.WORKER_CALL], spans[Span.WORKER_QUEUE]
    assert {span.trace_id.hex() for span in spans.values()} == {PARENT.split("-")[1]}
    assert call.parent_span_id.hex() == PARENT.split("-")[2]
    assert queue.parent_span_id == call.span_id
    assert queue.end_time_unix_nano - queue.start_time_unix_nano == pytest.approx(0.25e9, rel=1e-5)
    assert sent == {"a": "b", "traceparent": f"00-{call.trace_id.hex()}-{call.span_id.hex()}-01"}
    assert {item.key for item in call.attributes} == {Attribute.KIND, Attribute.BUDGET_MS}
    assert spans[Span.WORKER_STEP].status.code == trace_pb2.Status.STATUS_CODE_ERROR


def test_without_an_endpoint_the_callers_trace_is_passed_on() -> None:
    tracing = start("test", None, version="0", instance="a")
    with tracing.span(Span.ROUTER_CALL, extract((("traceparent", PARENT),)), kind="text"):
        assert dict(inject())["traceparent"] == PARENT
    assert inject() == ()
    tracing.shutdown()


def test_a_dead_collector_does_not_hold_up_the_end() -> None:
    tracing = start("test", "http://127.0.0.1:1", version="0", instance="a")
    with tracing.span(Span.WORKER_CALL):
        pass
    ending = threading.Thread(target=tracing.shutdown, daemon=True)
    ending.start()
    ending.join(LONG_S)
    assert not ending.is_alive()


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80))
def test_a_malformed_trace_context_is_no_context(text: str) -> None:
    context = extract((("traceparent", text),))
    assert context is None or dict(inject((), context))["traceparent"][:53] == text.strip()[:53]
