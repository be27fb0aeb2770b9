"""What goes with a request through an engine: its budget, its wish, its plan and the way back to its caller."""

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any

from headway.cost import ZERO, Cost
from headway.deadline import Budget
from headway.errors import HeadwayError
from headway.planning import Choice
from headway.quality import Rung, Wish
from headway.v1 import common_pb2

_keys = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the work, for `Served` and for the trace. Times are monotonic seconds."""

    name: str
    predicted_ms: float
    start_s: float
    end_s: float


@dataclass(slots=True, eq=False)
class Ticket:
    """One admitted request. The engine's thread writes it; the caller's handler reads what is put on `events`."""

    budget: Budget
    wish: Wish
    target_s: float
    """When the answer is wanted; monotonic, at most `budget.due_s`."""
    follows: bool = False
    """Part of an answer that was admitted before: it is taken even while the worker drains."""
    counted: bool = False
    """Room was kept for it with what it is part of: it is taken as it is."""
    key: int = field(default_factory=lambda: next(_keys))
    plan: common_pb2.Plan | None = None
    """The promise; set at admission."""
    predicted: Cost = ZERO
    """From admission to the answer, as promised."""
    choice: Choice | None = None
    """What is planned now."""
    admitted_s: float = 0.0
    started_s: float | None = None
    """When its first step began."""
    steps_executed: int = 0
    stages: list[Stage] = field(default_factory=list)
    cancelled: bool = False
    """The caller went away: the engine drops it before its next step."""
    done: bool = False
    events: "asyncio.Queue[Any]" = field(default_factory=asyncio.Queue)
    """What the handler streams: the engine's own events, `Finished`, or a `HeadwayError`."""

    @property
    def rung(self) -> Rung:
        """The rung that is planned now."""
        assert self.choice is not None
        return self.choice.option.rung

    @property
    def reason(self) -> common_pb2.RungReason:
        """Why the rung that is planned now: the plan's reason, unless the rung was lowered since."""
        return self._reason_for(self.rung)

    def _reason_for(self, rung: Rung) -> common_pb2.RungReason:
        assert self.plan is not None
        lowered = rung.quality < self.plan.rung.quality
        return common_pb2.RUNG_REASON_REPLANNED_LATE if lowered else self.plan.reason

    def served(
        self, now_s: float, *, worker_id: str, asset_hash: str, rung: Rung | None = None, quality: float | None = None
    ) -> common_pb2.Served:
        """What was served, for the final message; `quality` where it is not the rung's own."""
        assert self.plan is not None
        final = rung or self.rung
        return common_pb2.Served(
            rung=final.to_proto(),
            quality=final.quality if quality is None else quality,
            reason=self._reason_for(final),
            steps_planned=self.plan.steps,
            steps_executed=self.steps_executed,
            stages=[_stage_time(stage) for stage in self.stages],
            budget_ms=self.budget.total_s * 1000,
            slack_ms=self.budget.remaining_s(now_s) * 1000,
            worker_id=worker_id,
            attempts=1,
            asset_hash=asset_hash,
        )


def _stage_time(stage: Stage) -> common_pb2.StageTime:
    actual_ms = (stage.end_s - stage.start_s) * 1000
    return common_pb2.StageTime(stage=stage.name, predicted_ms=stage.predicted_ms, actual_ms=actual_ms)


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a request that was served; `result` is the engine's own."""

    result: Any = None


Event = Any | Finished | HeadwayError
