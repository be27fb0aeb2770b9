"""One mesh of real processes for all end-to-end tests, started as a user starts it, and a collector for its traces."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from headway.cli.run_folder import RunFolder, State
from headway.cli.up import with_free_port

START_S = 240.0


@dataclass(frozen=True)
class Mesh:
    """A detached mesh of the tests' own."""

    address: str
    run_folder: Path

    def state(self) -> State:
        state = RunFolder(self.run_folder).state()
        assert state is not None
        return state

    def socket(self, name: str) -> str:
        """Where a part listens."""
        return f"unix:{RunFolder(self.run_folder).socket(name)}"


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes what the mesh exports."""

    spans: list[tuple[str, trace_pb2.Span]] = field(default_factory=list)
    """(service, span)."""
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def Export(self, request: Any, context: Any) -> trace_service_pb2.ExportTraceServiceResponse:  # noqa: N802
        with self.arrived:
            for group in request.resource_spans:
                names = {item.key: item.value.string_value for item in group.resource.attributes}
                for scope in group.scope_spans:
                    self.spans += [(names["service.name"], span) for span in scope.spans]
            self.arrived.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, trace_id: bytes, enough: Callable[[set[tuple[str, str]]], bool]) -> list[tuple[str, Any]]:
        """The spans of a trace, once `enough` says so of its (service, name) pairs."""

        def of_trace() -> list[tuple[str, Any]]:
            return [(service, span) for service, span in self.spans if span.trace_id == trace_id]

        with self.arrived:
            self.arrived.wait_for(lambda: enough({(service, span.name) for service, span in of_trace()}), timeout=20)
            return of_trace()


def headway(*argv: object, timeout_s: float = START_S, **env: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "headway.cli.main", *map(str, argv)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, check=False, env={**os.environ, **env}
    )


@pytest.fixture(scope="session")
def collector() -> Iterator[tuple[Collector, str]]:
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, f"http://127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory, collector: tuple[Collector, str]) -> Iterator[Mesh]:
    made = Mesh(with_free_port("127.0.0.1:0"), tmp_path_factory.mktemp("r") / "run")
    flags = ("--detach", "--listen", made.address, "--run-dir", made.run_folder)
    started = headway("up", *flags, HEADWAY_OTLP_ENDPOINT=collector[1])
    assert started.returncode == 0, started.stderr
    yield made
    pids = made.state().pids
    ended = headway("down", "--run-dir", made.run_folder)
    assert ended.returncode == 0, ended.stderr
    assert not [name for name, pid in pids.items() if Path(f"/proc/{pid}").exists()]
