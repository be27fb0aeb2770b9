"""What a mesh writes down of requests: their figures, and nothing of what was asked or by which key."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import generate_latest

from headway import server
from headway.requests import text_request
from headway.tracing import Tracing

PROMPT, KEY = "tell nobody of the purple giraffe", "a-key-that-is-nobody-elses"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Takes the spans of all services of this process; only where they go is another place."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(server, "start", lambda *args, **kwargs: Tracing(provider))
    return exporter


async def test_no_prompt_and_no_key_is_logged_counted_or_traced(
    mesh: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, spans: InMemorySpanExporter
) -> None:
    caplog.set_level(logging.DEBUG)
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"acme: [{hashlib.sha256(KEY.encode()).hexdigest()}]\n")
    as_acme = (("authorization", f"Bearer {KEY}"),)
    worker = await mesh.worker("text")
    client = await mesh.router(worker, api_keys=keys, metadata=as_acme)
    good, bad = text_request(PROMPT), text_request(PROMPT, model=PROMPT)
    messages = [message async for message in client.text.Generate(good, timeout=9, metadata=as_acme)]
    assert messages[-1].HasField("summary")
    for request, metadata in ((bad, as_acme), (good, (("authorization", f"Bearer {KEY}x"),))):
        with pytest.raises(grpc.aio.AioRpcError):
            _ = [message async for message in client.text.Generate(request, timeout=9, metadata=metadata)]
    recorded = [span.to_json() for span in spans.get_finished_spans()]
    written = [caplog.text, generate_latest(mesh.router_service.metrics.registry).decode(), *recorded]
    assert 'tenant="acme"' in written[1]
    assert len(recorded) > 3
    for text in written:
        assert "giraffe" not in text
        assert KEY not in text
