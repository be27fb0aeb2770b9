"""Draws one frame and encodes it, changing the rung after binning when the view turns out too costly."""

from dataclasses import dataclass

from headway.deadline import Clock
from headway.engine import Batch
from headway.errors import BadInput
from headway.planning import Choice
from headway.ticket import Event, Finished, Stage, Ticket
from services.splat_worker.camera import Camera
from services.splat_worker.encode import Pixels, encode, scale_up, to_pixels
from services.splat_worker.frame import EncodedFrame, Frame, FrameSpec, Shot
from services.splat_worker.rasterizer import Rasterizer
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

    def __init__(self, rasterizer: Rasterizer, scheduler: SplatScheduler, clock: Clock) -> None:
        self._rasterizer, self._scheduler, self._clock = rasterizer, scheduler, clock

    def run(self, batch: Batch[Frame]) -> Taken | BadInput:
        """The frame, or the refusal of a view that only drawing shows to be too complex."""
        assert isinstance(batch, Shot)
        try:
            return self._take(batch)
        except BadInput as error:
            return error

    def _take(self, batch: Shot) -> Taken:
        work = batch.works[0]
        spec = work.spec
        choice, pixels, camera = self._draw(batch)
        rendered_s = self._clock()
        data = _encoded(work, pixels)
        gaussians = spec.scene.ranked.at(choice.option.rung).count
        size = (spec.camera.width, spec.camera.height, camera.width, camera.height)
        return Taken(choice, EncodedFrame(data, *size, gaussians), rendered_s, self._clock())

    def apply(self, batch: Batch[Frame], result: Taken | BadInput, now_s: float) -> list[tuple[Ticket, Event]]:
        assert isinstance(batch, Shot)
        work = batch.works[0]
        if isinstance(result, BadInput):
            return [(work.ticket, result)]
        work.ticket.choice = result.choice  # a plan made while the frame was drawn came too late to count
        work.ticket.steps_executed += 1
        work.ticket.stages.extend(self._stages(batch, result))
        return [(work.ticket, Finished(result.frame))]

    def release(self, work: Frame) -> None:
        """A frame holds nothing between steps."""

    def _draw(self, shot: Shot) -> tuple[Choice, Pixels, Camera]:
        """The choice that stood after binning, the pixels at the size asked for, and the camera that was drawn."""
        spec, choice, start_s = shot.works[0].spec, shot.choice, self._clock()
        camera = _camera(spec, choice)
        projection = self._rasterizer.project(spec.scene.ranked.at(choice.option.rung), camera, spec.sh_degree)
        lists = self._rasterizer.bin(projection, camera)
        now_s = self._clock()
        decided = self._scheduler.after_binning(shot, lists.work, (now_s - start_s) * 1000, now_s)
        if decided is not choice:
            choice, camera = decided, _camera(spec, decided)
            projection = self._rasterizer.project(spec.scene.ranked.at(choice.option.rung), camera, spec.sh_degree)
            lists = self._rasterizer.bin(projection, camera)
        picture = self._rasterizer.blend(projection, lists, camera, spec.background)
        return choice, scale_up(to_pixels(picture.rgb), spec.camera.width, spec.camera.height), camera

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


def _encoded(work: Frame, pixels: Pixels) -> bytes:
    """The frame's bytes; of a film, those that are ready with it."""
    if work.film is not None:
        return work.film.add(work.index, pixels)
    return encode(pixels, work.spec.encoding, work.spec.encoding_quality)


def _camera(spec: FrameSpec, choice: Choice) -> Camera:
    return spec.camera.scaled(choice.option.rung.resolution_scale or 1.0)
