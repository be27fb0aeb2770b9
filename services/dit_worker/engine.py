"""Runs one step over many requests, and encodes what is finished."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headway.deadline import Clock
from headway.engine import Batch
from headway.errors import Failed
from headway.ticket import Event, Finished, Stage, Ticket
from services.dit_worker.encode import finish_all
from services.dit_worker.model.decoder import Decoder
from services.dit_worker.model.flow_map import FlowMap
from services.dit_worker.sample_group import EncodedImage, Jump, Previews, SampleGroup
from services.dit_worker.sampler import Rows, foreseen, noises
from services.dit_worker.scheduler import DitScheduler
from services.dit_worker.stepper import Stepper

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Moved:
    """One group after a step; `images` are its last while it is finished, else previews, or None where none are due."""

    x: Tensor  # [items, channels, height, width]
    stepped_s: float
    images: tuple[EncodedImage, ...] | None
    encoded_s: float


class DitEngine:
    """A `headway.engine.Engine` over any flow map. `scheduler` says what stages were predicted to take."""

    def __init__(
        self, flow: FlowMap, stepper: Stepper, decoder: Decoder, scheduler: DitScheduler, clock: Clock
    ) -> None:
        self._flow, self._stepper, self._decoder = flow, stepper, decoder
        self._scheduler, self._clock = scheduler, clock

    def run(self, batch: Batch[SampleGroup]) -> list[Moved | Failed]:
        """One step over all samples of all groups, each from its own time to its own end.

        What goes wrong with one request's numbers or its encoding fails that request alone.
        """
        assert isinstance(batch, Jump)
        before = [work.x if work.x is not None else self._noise(work) for work in batch.works]
        after = self._stepper(_rows(batch, before))
        sound = torch.isfinite(after).flatten(1).all(dim=1).tolist()
        stepped_s, found, first = self._clock(), list[Moved | Failed](), 0
        for work, x, end in zip(batch.works, before, batch.ends, strict=True):
            rows = slice(first, first + work.items)
            found.append(self._moved(work, (x, after[rows]), end, stepped_s) if all(sound[rows]) else _not_finite(work))
            first = rows.stop
        return found

    def apply(
        self, batch: Batch[SampleGroup], result: Sequence[Moved | Failed], now_s: float
    ) -> list[tuple[Ticket, Event]]:
        assert isinstance(batch, Jump)
        return list(self._events(batch, result))

    def release(self, work: SampleGroup) -> None:
        work.x = None

    def _noise(self, work: SampleGroup) -> Tensor:
        """The group at t = 1: noise from (seed, place in the request) alone."""
        return noises(self._flow, work.spec.seed, work.items).to(self._stepper.device)

    def _moved(self, work: SampleGroup, xs: tuple[Tensor, Tensor], end: float, stepped_s: float) -> Moved | Failed:
        before, after = xs
        images = None
        if end == 0.0 or work.spec.previews:
            try:
                images = self._encoded(work, foreseen(before, after, work.t, end))
            except Exception as error:
                log.exception("encoding failed")
                return Failed(f"the images could not be encoded: {type(error).__name__}")
        return Moved(after, stepped_s, images, self._clock())

    def _encoded(self, work: SampleGroup, samples: Tensor) -> tuple[EncodedImage, ...]:
        """Every image of a group in the format that was asked for."""
        executed = work.ticket.steps_executed + 1
        encoded = finish_all(self._decoder, samples, work.spec.form, work.spec.encoding_quality)
        rows = enumerate(zip(work.spec.labels, encoded, strict=True))
        return tuple(EncodedImage(index, label, data, executed) for index, (label, data) in rows)

    def _events(self, batch: Jump, result: Sequence[Moved | Failed]) -> Iterator[tuple[Ticket, Event]]:
        for work, choice, end, moved in zip(batch.works, batch.choices, batch.ends, result, strict=True):
            if isinstance(moved, Failed):
                yield work.ticket, moved
                continue
            if not work.begun:
                work.begun, work.slowness = True, batch.slowness
            work.x, work.t, work.job = moved.x, end, None
            work.ticket.steps_executed += 1
            if moved.images is not None and end > 0.0:
                yield work.ticket, Previews(moved.images)
            elif moved.images is not None:
                work.ticket.choice = choice  # a plan made while the last step ran came too late to count
                work.ticket.stages.extend(self._stages(work, moved))
                yield work.ticket, Finished(moved.images)

    def _stages(self, work: SampleGroup, moved: Moved) -> tuple[Stage, ...]:
        """The three stages beside what the first plan promised for them; what is left of the promise is the queue."""
        ticket, costs = work.ticket, self._scheduler.costs
        assert ticket.started_s is not None and ticket.plan is not None
        encode_ms = self._scheduler.encode(work).mean_ms * work.slowness
        steps_ms = ticket.plan.steps * costs.step.at(work.items).mean_ms + costs.noise.at(work.items).mean_ms
        steps_ms = steps_ms * work.slowness + self._scheduler.previews(work, ticket.plan.steps).mean_ms * work.slowness
        queue_ms = max(0.0, ticket.predicted.mean_ms - self._scheduler.overhead_ms - steps_ms - encode_ms)
        return (
            Stage("queue", queue_ms, ticket.admitted_s, ticket.started_s),
            Stage("steps", steps_ms, ticket.started_s, moved.stepped_s),
            Stage("encode", encode_ms, moved.stepped_s, moved.encoded_s),
        )


def _rows(batch: Jump, before: Sequence[Tensor]) -> Rows:
    """All samples of a step as one tensor; the rest is one number a group, repeated for its samples."""
    items = torch.tensor([work.items for work in batch.works])

    def repeated(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).repeat_interleave(items)

    return Rows(
        torch.cat(tuple(before)),
        repeated([work.t for work in batch.works]),
        repeated(batch.ends),
        torch.tensor([label for work in batch.works for label in work.spec.labels]),
        repeated([work.spec.guidance.at(work.t, end) for work, end in zip(batch.works, batch.ends, strict=True)]),
    )


def _not_finite(work: SampleGroup) -> Failed:
    step = work.ticket.steps_executed + 1
    log.error("step %d of request %d gave values that are not numbers", step, work.ticket.key)
    return Failed(f"step {step} gave values that are not numbers")
