"""One trace for one request: client, router, worker and cache."""

from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from headway.local_redis import LocalRedis
from headway.requests import images_request
from headway.telemetry import Span
from headway.tracing import inject, start


class SpanCollector(trace_service_pb2_grpc.TraceServiceServicer):
    """A real OTLP/gRPC endpoint that keeps the spans it is sent."""

    def __init__(self) -> None:
        self.spans: list[trace_pb2.Span] = []
        self.server = grpc.server(futures.ThreadPoolExecutor(1))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self.server)
        self.url = f"http://127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the contract's name
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def span_collector() -> Iterator[SpanCollector]:
    collector = SpanCollector()
    yield collector
    collector.server.stop(None).wait()


async def test_one_trace_shows_client_router_worker_and_cache(mesh: Any, span_collector: SpanCollector) -> None:
    url = span_collector.url
    with LocalRedis.start(max_memory_mib=64) as valkey:
        worker = await mesh.worker(settings={"otlp_endpoint": url})
        address, _ = await mesh.cache(valkey.url, otlp_endpoint=url)
        client = await mesh.router(worker, prefix_cache=address, cache_lookup_ms=5000.0, otlp_endpoint=url)
        tracing = start("client", url, version="0", instance="test")
        with tracing.span(Span.CLIENT_CALL):
            call = client.images.Generate(images_request(3, seed=1), timeout=20, metadata=inject())
            assert len([message async for message in call]) == 6
        tracing.shutdown()
        await mesh.close()  # every service sends what it has
    (root,) = [span for span in span_collector.spans if span.name == Span.CLIENT_CALL]
    spans = {span.name: span for span in span_collector.spans if span.trace_id == root.trace_id}
    parents = {
        Span.ROUTER_CALL: Span.CLIENT_CALL,
        Span.ROUTER_PICK: Span.ROUTER_CALL,
        Span.ROUTER_FORWARD: Span.ROUTER_CALL,
        Span.CACHE_GET: Span.ROUTER_CALL,
        Span.CACHE_PUT: Span.ROUTER_CALL,
        Span.WORKER_CALL: Span.ROUTER_FORWARD,
    }
    assert {name: spans[name].parent_span_id for name in parents} == {
        name: spans[parent].span_id for name, parent in parents.items()
    }
    assert spans[Span.CACHE_CALL].parent_span_id in (spans[Span.CACHE_GET].span_id, spans[Span.CACHE_PUT].span_id)
    forwarded = {attribute.key: attribute.value for attribute in spans[Span.ROUTER_FORWARD].attributes}
    assert forwarded["headway.worker"].string_value == "image-one"
    assert forwarded["headway.attempt"].int_value == 1
