"""How many workers of a kind are wanted, from their backlog and from what could not be kept. The decision is pure.

| signal | wants |
|---|---|
| backlog | so many that each has at most `TARGET_BACKLOG_MS` of admitted work |
| attainment | more by the share of requests that were refused for load or came late, where that is over `UNKEPT` |
| busy | does not add: keeps those that are needed to stay under `MOST_BUSY` when others go |

All are averages over some ten seconds. What is wanted at most doubles at a time; how few and how many there may be is
for whoever scales to say.
"""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headway.telemetry import Metrics, Outcome
from headway.v1 import common_pb2, router_pb2
from services.router.pool import Pool, kind_name

TARGET_BACKLOG_MS = 1000.0
UNKEPT = 0.01
MOST_BUSY = 0.7
INTERVAL_S = 1.0
_WEIGHT = 0.1
SLIGHT = 0.01
"""An average below it counts as nothing: averages never reach 0."""
_JUDGED = {Outcome.OK, Outcome.SHED, Outcome.EXPIRED, Outcome.FAILED}
_REFUSED_FOR_LOAD = {"SHED", "NO_WORKER"}
_SERVING = {router_pb2.WORKER_HEALTH_HEALTHY, router_pb2.WORKER_HEALTH_EJECTED}


@dataclass(frozen=True, slots=True)
class Demand:
    """What one kind's workers have to do; averages."""

    workers: int
    """Healthy now."""
    backlog_ms: float = 0.0
    """Sum over workers of the time until all that they admitted is done."""
    busy: float = 0.0
    """Workers with anything in flight."""
    asked: float = 0.0
    """Requests in each interval that this router judged."""
    unkept: float = 0.0
    """Those of them that were refused for load, found no worker, or ended late."""


def desired_replicas(demand: Demand) -> int:
    """The workers wanted; 0 when there is nothing to do and nobody asks. Pure."""
    if demand.asked < SLIGHT and demand.busy < SLIGHT and demand.backlog_ms < 1:
        return 0
    workers = max(1, demand.workers)
    by_backlog = math.ceil(demand.backlog_ms / TARGET_BACKLOG_MS)
    share = min(1.0, demand.unkept / demand.asked) if demand.asked >= SLIGHT else 0.0
    by_attainment = math.ceil(workers * (1 + share)) if share > UNKEPT else 0
    kept = min(workers, math.ceil(demand.busy / MOST_BUSY))
    return max(1, kept, min(2 * workers, max(by_backlog, by_attainment)))


@dataclass(slots=True)
class _Averages:
    backlog_ms: float = 0.0
    busy: float = 0.0
    asked: float = 0.0
    unkept: float = 0.0
    counted: tuple[float, float] = field(default=(0.0, 0.0))
    """The counters of asked and unkept when they were last read."""


class ScaleSignal:
    """Follows the demand of every kind that is configured. Belongs to one event loop."""

    def __init__(self, pool: Pool, metrics: Metrics, kinds: set[common_pb2.Kind]) -> None:
        self._pool, self._metrics = pool, metrics
        self._averages = {kind: _Averages() for kind in kinds}
        self._desired: dict[common_pb2.Kind, int] = dict.fromkeys(kinds, 0)
        self.changed = asyncio.Event()
        """Set, and replaced by a new one, when the workers wanted of any kind change."""

    @property
    def desired(self) -> Mapping[common_pb2.Kind, int]:
        """The workers wanted of each kind."""
        return self._desired

    async def run(self) -> None:
        """Looks again and again, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(INTERVAL_S)

    def look(self) -> None:
        """Takes in how things stand; once an interval. Mutates the signal and the gauge."""
        entries = self._pool.entries()
        before = dict(self._desired)
        for kind, averages in self._averages.items():
            workers = [entry for entry in entries if entry.kind == kind and entry.health in _SERVING]
            demand = self._demand(kind, averages, workers)
            self._desired[kind] = desired_replicas(demand)
            self._metrics.desired_replicas.labels(kind_name(kind)).set(self._desired[kind])
        if self._desired != before:
            self.changed.set()
            self.changed = asyncio.Event()

    def _demand(self, kind: common_pb2.Kind, averages: _Averages, workers: list[router_pb2.WorkerEntry]) -> Demand:
        counted = self._counted(kind_name(kind))
        asked, unkept = (now - before for now, before in zip(counted, averages.counted, strict=True))
        averages.counted = counted
        averages.backlog_ms += _WEIGHT * (sum(entry.backlog_ms for entry in workers) - averages.backlog_ms)
        averages.busy += _WEIGHT * (sum(entry.in_flight > 0 for entry in workers) - averages.busy)
        averages.asked += _WEIGHT * (asked - averages.asked)
        averages.unkept += _WEIGHT * (unkept - averages.unkept)
        return Demand(len(workers), averages.backlog_ms, averages.busy, averages.asked, averages.unkept)

    def _counted(self, kind: str) -> tuple[float, float]:
        """Requests judged and not kept since the start. What a quota refused is neither."""
        ended = _totals(self._metrics.requests, kind, "outcome")
        refused = _totals(self._metrics.refusals, kind, "reason")
        for_load = sum(refused.get(reason, 0.0) for reason in _REFUSED_FOR_LOAD)
        done = sum(ended.get(outcome, 0.0) for outcome in _JUDGED - {Outcome.SHED})
        return done + for_load, for_load + ended.get(Outcome.EXPIRED, 0.0)


def _totals(counter: Any, kind: str, label: str) -> dict[str, float]:
    """What a counter says of one kind, by the label's value, whatever its other labels are."""
    totals: dict[str, float] = {}
    for sample in (sample for family in counter.collect() for sample in family.samples):
        if sample.name.endswith("_total") and sample.labels["kind"] == kind:
            totals[sample.labels[label]] = totals.get(sample.labels[label], 0.0) + sample.value
    return totals
