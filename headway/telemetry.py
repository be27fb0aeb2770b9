"""What Headway tells about itself: every metric, span and attribute name, declared here and nowhere else.

Metrics are Prometheus objects on one registry that a process makes and hands on; nothing is global. How spans are made
is `headway.tracing`'s.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from headway.errors import HeadwayError, Refused
from headway.v1 import common_pb2, errors_pb2

UNKNOWN_TENANT: Final = ""
"""As metrics carry a caller who was not identified; Prometheus takes an empty label as none."""

_WAITS_S = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
_REFUSALS_S = (0.0003, 0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 1)
_SPANS_S = (0.001, 0.003, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 30, 60)
_SIGNED_S = (-10, -3, -1, -0.3, -0.1, -0.03, -0.01, -0.003, 0, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
_LAGS_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.3, 1)
_SHARES = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)


class Outcome(StrEnum):
    """How a request ended: one of these and only one."""

    OK = "ok"
    CANCELLED = "cancelled"  # the caller went away
    EXPIRED = "expired"  # the deadline passed, before or after work began
    TOO_SMALL = "too_small"  # even an idle worker could not have met the deadline
    SHED = "shed"  # refused before work because of load
    FAILED = "failed"  # our fault
    BAD_INPUT = "bad_input"  # the caller's fault


def outcome_of(error: HeadwayError) -> Outcome:
    """How a request that ended in `error` is counted."""
    by_reason = {
        errors_pb2.ERROR_REASON_EXPIRED: Outcome.EXPIRED,
        errors_pb2.ERROR_REASON_BUDGET_TOO_SMALL: Outcome.TOO_SMALL,
        errors_pb2.ERROR_REASON_CANCELLED: Outcome.CANCELLED,
        errors_pb2.ERROR_REASON_FAILED: Outcome.FAILED,
        errors_pb2.ERROR_REASON_WORKER_LOST: Outcome.FAILED,
        errors_pb2.ERROR_REASON_STORE_UNAVAILABLE: Outcome.FAILED,
        errors_pb2.ERROR_REASON_SHED: Outcome.SHED,
        errors_pb2.ERROR_REASON_TOO_MANY_CALLS: Outcome.SHED,
        errors_pb2.ERROR_REASON_NO_WORKER: Outcome.SHED,
        errors_pb2.ERROR_REASON_DRAINING: Outcome.SHED,
    }
    return by_reason.get(error.reason, Outcome.BAD_INPUT)


class CacheResult(StrEnum):
    """What a look into the result cache gave."""

    HIT = "hit"
    MISS = "miss"
    WORSE = "worse"  # an entry was there, of a lower rung than would be planned now
    ERROR = "error"  # the cache could not be asked
    JOINED = "joined"  # the same request was in flight, and its answer was waited for


class Restore(StrEnum):
    """What came of asking the KV store for a prompt's beginning."""

    RESTORED = "restored"
    ABSENT = "absent"
    COSTLY = "costly"  # so little was there that computing is quicker
    LATE = "late"  # given up while computing still fitted
    FAILED = "failed"  # the store cannot be used


class SharedBlock(StrEnum):
    """What became of a KV block on its way to or from the KV store."""

    RESTORED = "restored"
    WRITTEN = "written"
    DAMAGED = "damaged"  # or foreign, or of another version: found, and not used
    GONE = "gone"  # from this worker's cache, before its turn to be written came
    DROPPED = "dropped"  # too many waited to be written, or the store took none


class Hedge(StrEnum):
    """Whose answer was taken where a second worker was asked."""

    WON = "won"
    LOST = "lost"


class Span(StrEnum):
    """Span names. `span` takes no others."""

    CLIENT_CALL = "headway.client.call"
    ROUTER_CALL = "headway.router.call"
    ROUTER_PICK = "headway.router.pick"
    ROUTER_FORWARD = "headway.router.forward"
    WORKER_CALL = "headway.worker.call"
    WORKER_ADMIT = "headway.worker.admit"
    WORKER_QUEUE = "headway.worker.queue"
    WORKER_PREFILL = "headway.worker.prefill"
    WORKER_STEP = "headway.worker.step"
    WORKER_ENCODE = "headway.worker.encode"
    DEVICE_LEASE = "headway.device.lease"
    CACHE_GET = "headway.cache.get"
    CACHE_PUT = "headway.cache.put"
    CACHE_CALL = "headway.cache.call"


class Attribute(StrEnum):
    """Span attribute names; the keyword arguments of `span` are these members' names in lower case."""

    KIND = "headway.kind"
    MODEL = "headway.model"
    RUNG = "headway.rung"
    REASON = "headway.reason"
    WORKER = "headway.worker"
    BUDGET_MS = "headway.budget_ms"
    SLACK_MS = "headway.slack_ms"
    BATCH = "headway.batch"
    STEP = "headway.step"
    STEPS = "headway.steps"
    TOKENS = "headway.tokens"
    ATTEMPT = "headway.attempt"
    CACHED = "headway.cached"
    RPC_METHOD = "rpc.method"


@dataclass(frozen=True, slots=True)
class Answer:
    """What `Metrics.record_answer` counts. Slacks are taken when the answer is complete."""

    rung: str
    reason: str
    quality: float
    slack_s: float
    target_slack_s: float
    priority: int
    """A `common_pb2.Priority`."""
    tenant: str


class Metrics:
    """Every metric of a Headway process, on one registry.

    Label values: `kind` is text, image or splat; `by` is target or deadline; `priority` is low, normal or high;
    `tenant` is a name of the key file, of a certificate or of a lease, never one that a caller fills in.
    """

    def __init__(self, service: str, version: str, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self._requests_metrics()
        self._quality_metrics()
        self._time_metrics()
        self._engine_metrics()
        self._mesh_metrics()
        self._gauge("build_info", "Which service and version this is.", "service", "version").labels(
            service, version
        ).set(1)

    def _requests_metrics(self) -> None:
        self.requests = self._counter("requests", "Requests ended.", "kind", "outcome", "tenant")
        held_to = ("kind", "by", "priority", "tenant")
        self.attained = self._counter("attained", "Answers in time, by what they were held to.", *held_to)
        self.missed = self._counter("missed", "Answers too late, by what they were held to.", *held_to)
        self.refusals = self._counter("refusals", "Requests refused before work.", "kind", "reason")
        self.refusal_seconds = self._histogram(
            "refusal_seconds", "From a request's arrival to its refusal.", _REFUSALS_S, "kind"
        )

    def _quality_metrics(self) -> None:
        self.rungs = self._counter("rungs_served", "Answers by rung.", "kind", "rung", "reason")
        self.quality = self._histogram("quality_ratio", "Normalised quality of answers.", _SHARES, "kind")

    def _time_metrics(self) -> None:
        self.duration = self._histogram(
            "request_duration_seconds", "From arrival to the end.", _SPANS_S, "kind", "outcome"
        )
        self.budget = self._histogram("budget_seconds", "Budget at arrival.", _SPANS_S, "kind")
        self.slack = self._histogram(
            "slack_seconds", "Time left until the deadline at the answer; negative: late.", _SIGNED_S, "kind"
        )
        self.first_token = self._histogram("first_token_seconds", "From arrival to the first token.", _SPANS_S)
        self.inter_token = self._histogram("inter_token_seconds", "From one token to the next.", _WAITS_S)
        self.finish_error = self._histogram(
            "finish_error_seconds", "Actual less predicted finish at admission.", _SIGNED_S, "kind"
        )

    def _engine_metrics(self) -> None:
        self.step = self._histogram("step_seconds", "Device time of one step.", _SPANS_S, "kind")
        self.occupancy = self._gauge("engine_occupancy_ratio", "Share of the batch slots in use.", "kind")
        self.queued = self._gauge("engine_queued_requests", "Admitted requests that wait for a step.", "kind")
        self.lease_wait = self._histogram("device_lease_wait_seconds", "Wait for a device lease.", _WAITS_S, "kind")
        self.unleased = self._counter("device_unleased_steps", "Steps run because no arbiter answered.", "kind")
        self.drafts = self._counter("draft_tokens", "Tokens run on trial, ahead of those drawn.", "result")
        self.loop_lag = self._histogram("event_loop_lag_seconds", "How late the event loop ran.", _LAGS_S)
        self.loop_lag_p99 = self._gauge("event_loop_lag_p99_seconds", "99th percentile of the recent lag.")

    def _mesh_metrics(self) -> None:
        self.result_cache = self._counter("result_cache_lookups", "Result cache look-ups.", "kind", "result")
        self.hedges = self._counter("hedges", "Frames asked of a second worker too.", "kind", "result")
        self.workers = self._gauge("workers", "Workers that the router knows, by state.", "kind", "state")
        self.waiting = self._gauge("waiting_requests", "Requests that wait at the router for a worker's yes.", "kind")
        self.held_blocks = self._gauge("held_prompt_blocks", "Blocks of prompts that text workers are known to cache.")
        self.desired_replicas = self._gauge("desired_replicas", "Workers wanted, from backlog and attainment.", "kind")
        self.kv_restores = self._counter("kv_restores", "Prompts whose KV blocks were asked of the KV store.", "result")
        self.kv_restore = self._histogram("kv_restore_seconds", "From asking to the last block restored.", _WAITS_S)
        self.kv_blocks = self._counter("kv_shared_blocks", "KV blocks on their way to or from the KV store.", "result")
        # With a label, so that a process without a store does not say that it cannot reach it.
        self.store_reachable = self._gauge("store_reachable", "1 while the store behind it answers.", "store")

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"headway_{name}", about, labels, registry=self.registry)

    def _gauge(self, name: str, about: str, *labels: str) -> Gauge:
        return Gauge(f"headway_{name}", about, labels, registry=self.registry)

    def _histogram(self, name: str, about: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"headway_{name}", about, labels, registry=self.registry, buckets=tuple(buckets))

    def record_end(
        self, kind: str, outcome: Outcome, duration_s: float, error: HeadwayError | None, tenant: str
    ) -> None:
        """Counts the end of a request, and a refusal by its reason."""
        for other in Outcome:  # a series must begin at zero, or Prometheus never sees its first increase
            self.requests.labels(kind, other, tenant)
        self.requests.labels(kind, outcome, tenant).inc()
        self.duration.labels(kind, outcome).observe(duration_s)
        if isinstance(error, Refused):
            self.refusals.labels(kind, error.reason_name).inc()
            self.refusal_seconds.labels(kind).observe(duration_s)

    def record_answer(self, kind: str, answer: Answer) -> None:
        """Counts an answer: its rung, quality, slack, and whether it met its target and its deadline."""
        self.rungs.labels(kind, answer.rung, answer.reason).inc()
        self.quality.labels(kind).observe(answer.quality)
        self.slack.labels(kind).observe(answer.slack_s)
        priority = common_pb2.Priority.Name(answer.priority).removeprefix("PRIORITY_").lower()
        for by, left_s in (("target", answer.target_slack_s), ("deadline", answer.slack_s)):
            labels = (kind, by, priority, answer.tenant)
            attained, missed = self.attained.labels(*labels), self.missed.labels(*labels)  # both begin at zero
            (attained if left_s >= 0 else missed).inc()


class MetricsEndpoint:
    """Serves `/metrics` of one registry over HTTP from a thread of its own until `close`."""

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        """Listens at once; port 0 picks a free one. Raises `OSError` when the address cannot be had."""
        self._server, self._thread = start_http_server(port, addr=host, registry=metrics.registry)
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stops listening. Blocks until the thread has ended."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


async def watch_loop_lag(
    metrics: Metrics,
    *,
    interval_s: float = 0.1,
    kept: int = 600,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Measures how late the running loop wakes a task, every `interval_s`, until cancelled.

    The gauge shows the 99th percentile of the last `kept` samples. uvloop's timers tick in milliseconds, so
    lags below one are noise.
    """
    lags_s: deque[float] = deque(maxlen=kept)
    metrics.loop_lag_p99.set_function(lambda: percentile(tuple(lags_s), 0.99))
    while True:
        due_s = clock() + interval_s
        await asyncio.sleep(interval_s)
        lags_s.append(max(0.0, clock() - due_s))
        metrics.loop_lag.observe(lags_s[-1])


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; NaN when there are no values."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan
