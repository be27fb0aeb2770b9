"""Walks a path: its frames through the engine loop, a few at a time, in order, to the end."""

import itertools
from collections import Counter, deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from headway import answer_trailers
from headway.deadline import Budget
from headway.errors import BadInput, Failed, Refused
from headway.planning import Choice
from headway.quality import Rung
from headway.ticket import Finished, Ticket
from headway.v1 import common_pb2, errors_pb2
from headway.worker import LoadedAsset, WorkerRuntime
from services.splat_worker.encode import Encoding
from services.splat_worker.frame import EncodedFrame, Frame
from services.splat_worker.pace import Demand, Pace, check_path, later_demand, pace_reason
from services.splat_worker.path import Timetable
from services.splat_worker.path_request import PathSpec
from services.splat_worker.scheduler import SplatScheduler
from services.splat_worker.video import Film

IN_HAND = 4
"""Frames of a path that are begun, or done and not read yet: enough to keep the engine busy, and all that a slow reader
makes the worker hold."""
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Walked:
    """A frame of the path."""

    index: int
    frame: EncodedFrame
    served: common_pb2.Served


@dataclass(frozen=True, slots=True)
class Skipped:
    """A frame that was left out, and why."""

    index: int
    reason: errors_pb2.ErrorReason


@dataclass(frozen=True, slots=True)
class _Begun:
    """A frame that the engine loop has taken, or will not take."""

    index: int
    """Its place in the path."""
    work: Frame | None = None
    events: "AsyncGenerator[object, None] | None" = None
    skipped: errors_pb2.ErrorReason = errors_pb2.ERROR_REASON_UNSPECIFIED


@dataclass(slots=True)
class _Tally:
    """What was served so far."""

    rungs: Counter[str] = field(default_factory=Counter)
    by_label: dict[str, Rung] = field(default_factory=dict)
    quality: float = 0.0
    stages: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Predicted and actual ms of all frames."""

    def add(self, ticket: Ticket, served: common_pb2.Served) -> None:
        self.rungs[ticket.rung.label] += 1
        self.by_label[ticket.rung.label] = ticket.rung
        self.quality += served.quality
        for stage in served.stages:
            if stage.stage != "queue":  # frames wait beside each other
                predicted_ms, actual_ms = self.stages.get(stage.stage, (0.0, 0.0))
                self.stages[stage.stage] = predicted_ms + stage.predicted_ms, actual_ms + stage.actual_ms


class Walk:
    """One admitted path. `parts` yields its plan, then for every frame what came of it, then what was served."""

    def __init__(
        self, runtime: WorkerRuntime, scheduler: SplatScheduler, asset: LoadedAsset, spec: PathSpec, whole: Ticket
    ) -> None:
        """`whole`: the path's budget, wish and target. Raises BadInput for a video that cannot be made."""
        self._runtime, self._scheduler, self._asset = runtime, scheduler, asset
        self._spec, self._whole, self._number, self._tally = spec, whole, next(_numbers), _Tally()
        camera, encoding = spec.first.camera, Encoding.H264 if spec.video else spec.first.encoding
        self._first = replace(spec.first, encoding=encoding)
        self.film: Film | None = None
        if spec.video:
            quality, rate = spec.first.encoding_quality, spec.video_frames_per_second or spec.frames_per_second
            self.film = Film(camera.width, camera.height, rate, quality)
        self._timetable = Timetable(
            arrival_s=whole.budget.arrival_s,
            target_s=whole.target_s,
            due_s=whole.budget.due_s,
            count=spec.path.count - spec.first_frame,
            frames_per_second=spec.frames_per_second,
            start_delay_s=spec.start_delay_s,
        )

    async def parts(self) -> AsyncGenerator[common_pb2.Plan | Walked | Skipped | common_pb2.Served, None]:
        """Raises the refusal when the path is not admitted. Leaving early cancels it within one frame."""
        with self._runtime.loop.series():
            plan, begun = self._admit(), deque[_Begun]()
            try:
                begun.append(await self._begin(0, first=True))
                yield plan
                for index in range(1, self._timetable.count):
                    if len(begun) == IN_HAND:
                        yield await self._end(begun.popleft())
                    begun.append(await self._begin(index))
                while begun:
                    yield await self._end(begun.popleft())
                yield self._served(plan)
            finally:
                self._scheduler.ahead.keep(self._number, ())
                for frame in begun:
                    if frame.events is not None:
                        await frame.events.aclose()

    def _admit(self) -> common_pb2.Plan:
        """Checks the path against all that is admitted, and keeps room for its frames."""
        snapshot = self._runtime.loop.snapshot()
        setting, now_s, budget, timetable = snapshot.setting, snapshot.now_s, self._whole.budget, self._timetable
        if budget.promised:
            setting = replace(setting, failover_share=0.0)
        job = self._scheduler.job(self._frame(0, now_s), now_s)
        factor = setting.scale.mean_ms
        others = [*_lowest(snapshot.choices, factor), *self._scheduler.ahead.scaled(factor), *snapshot.foreign]
        check_path(job, timetable, setting, others, reserve_ms=budget.reserve_s * 1000)
        others_ms = sum(ms for due_s, ms in others if due_s <= timetable.due_s)
        pace, alone = Pace.of(job, timetable, setting, others_ms), Pace.of(job, timetable, setting, 0.0)
        most_ms = budget.total_s * 1000
        return common_pb2.Plan(
            rung=job.options[pace.level].rung.to_proto(),
            reason=pace_reason(pace.level, alone.level, job, self._whole.wish),
            steps=timetable.count,
            budget_ms=most_ms,
            predicted_p50_ms=min(pace.finish.quantile_ms(0.5), most_ms),
            predicted_p99_ms=min(pace.finish.quantile_ms(0.99), most_ms),
            worker_id=self._runtime.identity.worker_id,
        )

    def _frame(self, index: int, now_s: float) -> Frame:
        reserve_s, due_s = self._whole.budget.reserve_s, self._timetable.frame_due_s(index)
        promised = self._whole.budget.promised
        budget = Budget(arrival_s=now_s, deadline_s=due_s + reserve_s, reserve_s=reserve_s, promised=promised)
        target_s, follows = self._timetable.frame_target_s(index), index > 0
        counted = follows and self._timetable.frames_per_second is None  # a rate may be above what the worker can do
        ticket = Ticket(budget, self._whole.wish, target_s, follows=follows, counted=counted)
        place = self._spec.first_frame + index
        return Frame(ticket, replace(self._first, camera=self._spec.path.camera(place)), self.film, place)

    async def _begin(self, index: int, *, first: bool = False) -> _Begun:
        """Gives a frame to the engine loop. Where that refuses, it is skipped; with the first, the path is refused."""
        work = self._frame(index, self._runtime.service.clock())
        self._keep_free(index + 1, work)
        events = self._runtime.events(work)
        try:
            await anext(events)
        except Refused as refusal:
            if first:
                raise
            return _Begun(work.index, skipped=refusal.reason)
        return _Begun(work.index, work, events)

    def _keep_free(self, begun: int, work: Frame) -> None:
        lowest = self._scheduler.frame(work, work.ticket.wish.allowed[-1].label)
        self._scheduler.ahead.keep(self._number, later_demand(self._timetable, begun, lowest.mean_ms))

    async def _end(self, begun: _Begun) -> Walked | Skipped:
        """Waits for a frame. What comes too late, or cannot be drawn, is skipped; a fault of ours ends the path."""
        work, events = begun.work, begun.events
        if work is None or events is None:
            return Skipped(begun.index, begun.skipped)
        try:
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Finished):
                        served = self._runtime.served(work.ticket, self._asset)
                        self._tally.add(work.ticket, served)
                        return Walked(begun.index, event.result, served)
        except (Refused, BadInput) as error:
            return Skipped(begun.index, error.reason)
        raise Failed("a frame ended without an answer")

    def _served(self, plan: common_pb2.Plan) -> common_pb2.Served:
        """What was served over the whole path."""
        budget, now_s, tally = self._whole.budget, self._runtime.service.clock(), self._tally
        executed = tally.rungs.total()
        rung = tally.by_label[tally.rungs.most_common(1)[0][0]].to_proto() if executed else plan.rung
        served = common_pb2.Served(
            rung=rung,
            quality=tally.quality / self._timetable.count,
            reason=common_pb2.RUNG_REASON_REPLANNED_LATE if rung.quality < plan.rung.quality else plan.reason,
            steps_planned=plan.steps,
            steps_executed=executed,
            budget_ms=budget.total_s * 1000,
            slack_ms=budget.remaining_s(now_s) * 1000,
            worker_id=plan.worker_id,
            attempts=1,
            asset_hash=self._asset.hash,
        )
        whole_ms = (now_s - budget.arrival_s) * 1000
        stages = {"path": (plan.predicted_p50_ms, whole_ms), **tally.stages}
        for name, (predicted_ms, actual_ms) in stages.items():
            served.stages.add(stage=name, predicted_ms=predicted_ms, actual_ms=actual_ms)
        answer_trailers.tell(served)
        return served


def _lowest(choices: tuple[Choice, ...], factor: float) -> Demand:
    """What is admitted, at its lowest rungs."""
    return [(choice.job.due_s, choice.job.options[-1].load.setup.mean_ms * factor) for choice in choices]
