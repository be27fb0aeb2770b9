"""One view, coarse first and then better, until the deadline."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from headway import answer_trailers
from headway.cost import Cost
from headway.errors import Refused
from headway.quality import Rung
from headway.ticket import Finished, Ticket
from headway.v1 import common_pb2
from headway.worker import LoadedAsset, WorkerRuntime
from services.splat_worker.frame import EncodedFrame, Frame, FrameSpec
from services.splat_worker.scheduler import SplatScheduler

_GROWTH = 3.0
"""A frame costs at most so many times the one before, where rungs allow: all frames before the last cost half of it."""


@dataclass(frozen=True, slots=True)
class Refined:
    """One frame of the answer; each is better than the one before."""

    index: int
    frame: EncodedFrame
    served: common_pb2.Served


def next_rung(costs: Sequence[Cost], last: Cost, room_ms: float, quantile: float) -> int | None:
    """Index of the rung to draw next, by the costs of those above the last one, best first.

    The best that fits, or one on the way to it where that is far; None when none fits. Pure.
    """
    times_ms = [cost.quantile_ms(quantile) for cost in costs]
    goal = next((index for index, ms in enumerate(times_ms) if ms <= room_ms), None)
    if goal is None or times_ms[goal] <= _GROWTH * last.mean_ms:
        return goal
    near = next((i for i, cost in enumerate(costs) if i > goal and cost.mean_ms <= _GROWTH * last.mean_ms), None)
    return goal if near is None or times_ms[near] + times_ms[goal] > room_ms else near


class Progressive:
    """One admitted view. `parts` yields the plan of its first frame, then frames, then what was served."""

    def __init__(
        self, runtime: WorkerRuntime, scheduler: SplatScheduler, asset: LoadedAsset, spec: FrameSpec, whole: Ticket
    ) -> None:
        """`whole`: the call's budget, wish and target."""
        self._runtime, self._scheduler, self._asset = runtime, scheduler, asset
        self._spec, self._whole = spec, whole

    async def parts(self) -> AsyncGenerator[common_pb2.Plan | Refined | common_pb2.Served, None]:
        """Raises the refusal when the coarsest frame is not admitted. Leaving early cancels within one frame."""
        allowed = self._whole.wish.allowed
        with self._runtime.loop.series():
            rungs, frames, best = allowed[-1:], 0, None
            while rungs:
                work = self._frame(rungs, frames)
                try:
                    async with aclosing(self._runtime.events(work)) as events:
                        async for event in events:
                            if isinstance(event, common_pb2.Plan) and best is None:
                                yield event
                            elif isinstance(event, Finished):
                                best = self._runtime.served(work.ticket, self._asset)
                                yield Refined(frames, event.result, best)
                except Refused:
                    if best is None:
                        raise
                    break  # there is no time for a better one after all
                frames += 1
                rungs = self._next(work)
            assert best is not None
            yield self._served(best, frames)

    def _frame(self, rungs: tuple[Rung, ...], index: int) -> Frame:
        wish, whole = replace(self._whole.wish, allowed=rungs), self._whole
        return Frame(Ticket(whole.budget, wish, whole.target_s, follows=index > 0), self._spec)

    def _next(self, last: Frame) -> tuple[Rung, ...]:
        """The rungs that the next frame may have, best first; none when it is done."""
        setting = self._runtime.loop.snapshot().setting
        allowed = self._whole.wish.allowed
        better = allowed[: allowed.index(last.ticket.rung)]
        costs = [self._scheduler.frame(last, rung.label).scaled(setting.scale) for rung in better]
        drawn = self._scheduler.frame(last, last.ticket.rung.label).scaled(setting.scale)
        room_ms = self._whole.budget.remaining_s(setting.now_s) * 1000 - setting.overhead_ms
        index = next_rung(costs, drawn, room_ms, setting.rung_quantile)
        return () if index is None else better[index:]

    def _served(self, best: common_pb2.Served, frames: int) -> common_pb2.Served:
        served = common_pb2.Served()
        served.CopyFrom(best)
        served.steps_executed = frames
        served.slack_ms = self._whole.budget.remaining_s(self._runtime.service.clock()) * 1000
        answer_trailers.tell(served)
        return served
