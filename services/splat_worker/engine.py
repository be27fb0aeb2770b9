"""Draws frames and encodes them, changing the rung after binning when a view turns out too costly."""

from dataclasses import dataclass

import numpy as np

from headway.deadline import Clock
from headway.engine import Batch
from headway.errors import BadInput
from headway.planning import Choice
from headway.ticket import Event, Finished, Stage, Ticket
from services.splat_worker.camera import Camera
from services.splat_worker.encode import Developed, develop, encode
from services.splat_worker.frame import EncodedFrame, Frame, FrameSpec, Gang, Shot
from services.splat_worker.gang import Crew
from services.splat_worker.rasterizer import Projection, Rasterizer
from services.splat_worker.scheduler import SplatScheduler


@dataclass(frozen=True, slots=True)
class Taken:
    """A frame after its step: at which choice it was drawn, and when its stages ended."""

    choice: Choice
    frame: EncodedFrame
    rendered_s: float
    encoded_s: float


class SplatEngine:
    """A `headway.engine.Engine` over one rasteriser, which belongs to the engine's thread."""

    def __init__(
        self, rasterizer: Rasterizer, scheduler: SplatScheduler, clock: Clock, crew: Crew | None = None
    ) -> None:
        """`crew` draws gangs; needed where the scheduler makes some."""
        self._rasterizer, self._scheduler, self._clock, self._crew = rasterizer, scheduler, clock, crew

    def run(self, batch: Batch[Frame]) -> list[Taken | BadInput]:
        """For each work its frame, or the refusal of a view that only drawing shows to be too complex."""
        if isinstance(batch, Gang):
            assert self._crew is not None
            return self._crew.side_by_side(self._taken, batch.shots)
        assert isinstance(batch, Shot)
        return [self._taken(batch, self._rasterizer)]

    def _taken(self, shot: Shot, rasterizer: Rasterizer) -> Taken | BadInput:
        try:
            return self._take(shot, rasterizer)
        except BadInput as error:
            return error

    def _take(self, batch: Shot, rasterizer: Rasterizer) -> Taken:
        work = batch.works[0]
        spec = work.spec
        choice, pixels, camera = self._draw(batch, rasterizer)
        rendered_s = self._clock()
        data = _encoded(work, pixels)
        gaussians = spec.scene.ranked.at(choice.option.rung).count
        size = (spec.camera.width, spec.camera.height, camera.width, camera.height)
        return Taken(choice, EncodedFrame(data, *size, gaussians), rendered_s, self._clock())

    def apply(self, batch: Batch[Frame], result: list[Taken | BadInput], now_s: float) -> list[tuple[Ticket, Event]]:
        assert isinstance(batch, Shot | Gang)
        shots = batch.shots if isinstance(batch, Gang) else (batch,)
        return [self._finished(shot, taken) for shot, taken in zip(shots, result, strict=True)]

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

    def _draw(self, shot: Shot, rasterizer: Rasterizer) -> tuple[Choice, Developed, Camera]:
        """The choice that stood after binning, the pixels at the size asked for, and the camera that was drawn."""
        spec, choice, start_s = shot.works[0].spec, shot.choice, self._clock()
        camera = _camera(spec, choice)
        projection = _project(spec, choice, camera, rasterizer)
        lists = rasterizer.bin(projection, camera)
        now_s = self._clock()
        decided = self._scheduler.after_binning(shot, lists.work, (now_s - start_s) * 1000, now_s)
        if decided is not choice:
            choice, camera = decided, _camera(spec, decided)
            projection = _project(spec, choice, camera, rasterizer)
            lists = rasterizer.bin(projection, camera)
        picture = rasterizer.blend(projection, lists, camera, spec.background, spec.with_depth)
        return choice, develop(picture, spec.encoding, spec.camera.width, spec.camera.height, spec.channels), camera

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


def _encoded(work: Frame, pixels: Developed) -> bytes:
    """The frame's bytes; of a film, those that are ready with it."""
    if work.film is not None:
        return work.film.add(work.index, np.asarray(pixels, dtype=np.uint8))
    return encode(pixels, work.spec.encoding, work.spec.encoding_quality)


def _camera(spec: FrameSpec, choice: Choice) -> Camera:
    return spec.camera.scaled(choice.option.rung.resolution_scale or 1.0)


def _project(spec: FrameSpec, choice: Choice, camera: Camera, rasterizer: Rasterizer) -> Projection:
    level = spec.scene.ranked.at(choice.option.rung)
    return rasterizer.project(level, camera, spec.sh_degree, spec.antialiased)
