"""Draws frames and encodes them, changing the rung after binning when a view turns out too costly."""

from dataclasses import dataclass

import numpy as np

from headway.deadline import Clock
from headway.engine import Batch
from headway.errors import BadInput
from headway.planning import Choice
from headway.quality import Rung
from headway.ticket import Event, Finished, Stage, Ticket
from services.splat_worker.encode import Developed, develop, encode
from services.splat_worker.frame import EncodedFrame, Frame, FrameSpec, Gang, Shot
from services.splat_worker.rasterizer import Picture
from services.splat_worker.renderer import Renderer
from services.splat_worker.scheduler import SplatScheduler


@dataclass(frozen=True, slots=True)
class Taken:
    """A frame after its step: at which choice it was drawn, and when its stages ended."""

    choice: Choice
    frame: EncodedFrame
    rendered_s: float
    encoded_s: float


class SplatEngine:
    """A `headway.engine.Engine` over a renderer, which belongs to the engine's thread."""

    def __init__(self, renderer: Renderer, scheduler: SplatScheduler, clock: Clock) -> None:
        self._renderer, self._scheduler, self._clock = renderer, scheduler, clock

    def run(self, batch: Batch[Frame]) -> list[Taken | BadInput]:
        """For each work its frame, or the refusal of a view that only drawing shows to be too complex."""
        return self._renderer.draw([_ShotExposure(shot, self._scheduler, self._clock) for shot in _shots(batch)])

    def apply(self, batch: Batch[Frame], result: list[Taken | BadInput], now_s: float) -> list[tuple[Ticket, Event]]:
        return [self._finished(shot, taken) for shot, taken in zip(_shots(batch), result, strict=True)]

    def _finished(self, shot: Shot, taken: Taken | BadInput) -> tuple[Ticket, Event]:
        work = shot.works[0]
        if isinstance(taken, BadInput):
            return work.ticket, taken
        work.ticket.choice = taken.choice  # a plan made while the frame was drawn came too late to count
        work.ticket.steps_executed += 1
        work.ticket.stages.extend(self._stages(shot, taken))
        return work.ticket, Finished(taken.frame)

    def release(self, work: Frame) -> None:
        """A frame holds nothing between steps."""

    def _stages(self, shot: Shot, taken: Taken) -> tuple[Stage, ...]:
        """The stages beside what was predicted for them; what is left of the first promise is the queue."""
        work = shot.works[0]
        ticket = work.ticket
        assert ticket.started_s is not None
        encode_ms = self._scheduler.encode(work).mean_ms * shot.slowness
        render_ms = shot.predicted.mean_ms * shot.slowness - encode_ms
        queue_ms = max(0.0, ticket.predicted.mean_ms - self._scheduler.overhead_ms - render_ms - encode_ms)
        return (
            Stage("queue", queue_ms, ticket.admitted_s, ticket.started_s),
            Stage("render", render_ms, ticket.started_s, taken.rendered_s),
            Stage("encode", encode_ms, taken.rendered_s, taken.encoded_s),
        )


class _ShotExposure:
    """A shot while it is taken."""

    def __init__(self, shot: Shot, scheduler: SplatScheduler, clock: Clock) -> None:
        self._shot, self._scheduler, self._clock = shot, scheduler, clock
        self._choice, self._start_s = shot.choice, clock()

    @property
    def spec(self) -> FrameSpec:
        return self._shot.works[0].spec

    @property
    def rung(self) -> Rung:
        return self._choice.option.rung

    def binned(self, tile_work: int) -> None:
        now_s = self._clock()
        self._choice = self._scheduler.after_binning(self._shot, tile_work, (now_s - self._start_s) * 1000, now_s)

    def finish(self, picture: Picture) -> Taken:
        """Develops and encodes."""
        spec, camera = self.spec, self.spec.camera_at(self.rung)
        pixels = develop(picture, spec.encoding, spec.camera.width, spec.camera.height, spec.channels)
        rendered_s = self._clock()
        data = _encoded(self._shot.works[0], pixels)
        size = (spec.camera.width, spec.camera.height, camera.width, camera.height)
        frame = EncodedFrame(data, *size, spec.scene.ranked.count(self.rung))
        return Taken(self._choice, frame, rendered_s, self._clock())


def _shots(batch: Batch[Frame]) -> tuple[Shot, ...]:
    assert isinstance(batch, Shot | Gang)
    return batch.shots if isinstance(batch, Gang) else (batch,)


def _encoded(work: Frame, pixels: Developed) -> bytes:
    """The frame's bytes; of a film, those that are ready with it."""
    if work.film is not None:
        return work.film.add(work.index, np.asarray(pixels, dtype=np.uint8))
    return encode(pixels, work.spec.encoding, work.spec.encoding_quality)
