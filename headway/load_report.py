"""How busy this process is, as ORCA (xDS's load report) says it: in the trailers of calls, and on a stream of its own.

It is for load balancers of other meshes, such as gRPC's own weighted round robin. Our routers watch `Worker.Watch`,
which tells what a prediction needs.
"""

import asyncio
import contextlib
import math
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import grpc

from headway.deadline import Clock
from headway.telemetry import Outcome
from headway.v1 import orca_data_pb2, orca_service_pb2, orca_service_pb2_grpc, worker_pb2

TRAILER = "endpoint-load-metrics-bin"
"""Trailing metadata that carries a serialised report."""
AVERAGED_S = 10.0
"""Rates are moving averages: what is this old weighs 1/e of what is new."""
SERVICE = "xds.service.orca.v3.OpenRcaService"
_FRESH_S = 0.1
"""A report is made at most this often, however many calls carry it."""
_YOUNGEST_S = 1.0
_LEAST_INTERVAL_S, _MOST_INTERVAL_S = 1.0, 3600.0
MOST_STREAMS = 64
"""Streams of reports that are served at once: they need no key."""
_ERRORS = {Outcome.SHED, Outcome.FAILED, Outcome.EXPIRED}


class Figure(StrEnum):
    """Names in a report's `named_metrics`."""

    CALLS_IN_FLIGHT = "headway.calls_in_flight"
    BACKLOG_MS = "headway.backlog_ms"
    QUEUE_DEPTH = "headway.queue_depth"
    QUEUED_PREFILL_TOKENS = "headway.queued_prefill_tokens"
    FREE_KV_SHARE = "headway.free_kv_share"


KV_CACHE = "kv_cache"
"""Name in a report's `utilization`."""


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What only a worker knows of its load."""

    backlog_s: float
    """When it would finish what it has admitted."""
    named: Mapping[str, float] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    """Parts of resources that are taken; 0 to 1."""


def occupancy_of(state: worker_pb2.WorkerState) -> Occupancy:
    """The same figures as `Worker.Watch` tells."""
    named: dict[str, float] = {Figure.BACKLOG_MS: state.backlog_ms, Figure.QUEUE_DEPTH: float(state.in_flight)}
    if not state.total_kv_blocks:
        return Occupancy(state.backlog_ms / 1000, named)
    free = state.free_kv_blocks / state.total_kv_blocks
    named |= {Figure.QUEUED_PREFILL_TOKENS: float(state.queued_prefill_tokens), Figure.FREE_KV_SHARE: free}
    return Occupancy(state.backlog_ms / 1000, named, {KV_CACHE: 1.0 - free})


class Rate:
    """A moving average of an amount per second. Safe between threads."""

    def __init__(self, now_s: float) -> None:
        self._lock = threading.Lock()
        self._begun_s = self._last_s = now_s
        self._per_s = 0.0

    def add(self, amount: float, now_s: float) -> None:
        """Counts what was done just now. Mutates the rate."""
        with self._lock:
            self._fade(now_s)
            self._per_s += amount / AVERAGED_S

    def spread(self, amount: float, now_s: float) -> None:
        """Counts what was done evenly since this was last called, or since the start. Mutates the rate."""
        with self._lock:
            passed_s = now_s - self._last_s
            self._fade(now_s)
            if passed_s > 0:
                self._per_s += amount / passed_s * -math.expm1(-passed_s / AVERAGED_S)

    def per_s(self, now_s: float) -> float:
        """As of now; young ones are the mean since they began, so that they do not begin low."""
        with self._lock:
            self._fade(now_s)
            known = -math.expm1(-max(_YOUNGEST_S, now_s - self._begun_s) / AVERAGED_S)
            return self._per_s / known

    def _fade(self, now_s: float) -> None:
        self._per_s *= math.exp(-max(0.0, now_s - self._last_s) / AVERAGED_S)
        self._last_s = max(self._last_s, now_s)


class LoadMeter:
    """Measures the load of a process. Reports belong to the event loop; `worked` to any thread."""

    occupancy: Callable[[], Occupancy] | None = None
    """Set by a worker before calls are taken."""

    def __init__(self, clock: Clock, *, cpu_s: Clock = time.process_time) -> None:
        """`cpu_s`: CPU seconds that this process has used."""
        self._clock, self._cpu_s, self._in_flight = clock, cpu_s, 0
        now_s = clock()
        self._answers, self._errors, self._device, self._cpu = (Rate(now_s) for _ in range(4))
        self._cpu_seen_s = cpu_s()
        self._made_s = -math.inf
        self._made = orca_data_pb2.OrcaLoadReport()

    def began(self) -> None:
        """Counts a call as in flight until it `ended`. Mutates the meter."""
        self._in_flight += 1

    def ended(self, outcome: Outcome) -> None:
        """Counts how a call went. Mutates the meter."""
        self._in_flight -= 1
        if outcome is Outcome.OK:
            self._answers.add(1.0, self._clock())
        elif outcome in _ERRORS:
            self._errors.add(1.0, self._clock())

    def worked(self, device_s: float) -> None:
        """Counts a step's device time. Mutates the meter."""
        self._device.add(device_s, self._clock())

    def report(self) -> orca_data_pb2.OrcaLoadReport:
        """The load now, or a moment ago. The caller must not change it."""
        now_s = self._clock()
        if now_s - self._made_s >= _FRESH_S:
            self._made, self._made_s = self._measure(now_s), now_s
        return self._made

    def trailer(self, *, refused: bool = False) -> tuple[str, bytes]:
        """The report as a call's trailing metadata.

        For one that is `refused` the last one that was made will do: a no need not wait until an engine can tell more.
        """
        made = self._made if refused and self._made_s > -math.inf else self.report()
        return TRAILER, made.SerializeToString()

    def _measure(self, now_s: float) -> orca_data_pb2.OrcaLoadReport:
        report = orca_data_pb2.OrcaLoadReport(
            cpu_utilization=self._cpu_share(now_s),
            rps_fractional=self._answers.per_s(now_s),
            eps=self._errors.per_s(now_s),
            named_metrics={Figure.CALLS_IN_FLIGHT: float(self._in_flight)},
        )
        if self.occupancy is not None:
            occupancy = self.occupancy()
            report.application_utilization = self._device.per_s(now_s) + occupancy.backlog_s / AVERAGED_S
            report.named_metrics.update(occupancy.named)
            report.utilization.update(occupancy.shares)
        return report

    def _cpu_share(self, now_s: float) -> float:
        used_s = self._cpu_s()
        used_s, self._cpu_seen_s = used_s - self._cpu_seen_s, used_s
        self._cpu.spread(used_s, now_s)
        return min(1.0, self._cpu.per_s(now_s) / _cores())


def _cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OpenRca(orca_service_pb2_grpc.OpenRcaServiceServicer):
    """Streams reports to whoever asks, a few at once, until `close`."""

    def __init__(self, meter: LoadMeter) -> None:
        self._meter, self._open, self._closed = meter, 0, asyncio.Event()

    async def StreamCoreMetrics(
        self, request: orca_service_pb2.OrcaLoadReportRequest, context: Any
    ) -> AsyncIterator[orca_data_pb2.OrcaLoadReport]:
        if self._open >= MOST_STREAMS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MOST_STREAMS} streams of reports are open")
        self._open += 1
        try:
            while not self._closed.is_set():
                yield self._meter.report()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closed.wait(), interval_s(request))
        finally:
            self._open -= 1

    def close(self) -> None:
        """Ends the streams: they never end by themselves."""
        self._closed.set()


def interval_s(request: orca_service_pb2.OrcaLoadReportRequest) -> float:
    """From one report to the next: what was asked for, within limits."""
    asked = request.report_interval
    return min(_MOST_INTERVAL_S, max(_LEAST_INTERVAL_S, asked.seconds + asked.nanos / 1e9))
