"""Runs one step over many requests, and encodes what is finished."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from headway.deadline import Clock
from headway.engine import Batch
from headway.ticket import Event, Finished, Stage, Ticket
from services.dit_worker.encode import encode
from services.dit_worker.model.flow_map import FlowMap
from services.dit_worker.sample_group import EncodedImage, Jump, SampleGroup
from services.dit_worker.sampler import Sample, start, step
from services.dit_worker.scheduler import DitScheduler


@dataclass(frozen=True, slots=True)
class Moved:
    """One group after a step; `images` is None while it is under way."""

    samples: tuple[Sample, ...]
    stepped_s: float
    images: tuple[EncodedImage, ...] | None
    encoded_s: float


class DitEngine:
    """A `headway.engine.Engine` over any flow map. `scheduler` says what stages were predicted to take."""

    def __init__(self, flow: FlowMap, scheduler: DitScheduler, clock: Clock) -> None:
        self._flow, self._scheduler, self._clock = flow, scheduler, clock

    def run(self, batch: Batch[SampleGroup]) -> list[Moved]:
        """One forward pass over all samples of all groups, each from its own time to its own end."""
        assert isinstance(batch, Jump)
        groups = [work.samples or begin(self._flow, work) for work in batch.works]
        ends = [end for group, end in zip(groups, batch.ends, strict=True) for _ in group]
        moved = iter(step(self._flow, [sample for group in groups for sample in group], ends))
        stepped_s = self._clock()
        return [
            self._finish(work, tuple(islice(moved, work.items)), end, stepped_s)
            for work, end in zip(batch.works, batch.ends, strict=True)
        ]

    def apply(self, batch: Batch[SampleGroup], result: Sequence[Moved], now_s: float) -> list[tuple[Ticket, Event]]:
        assert isinstance(batch, Jump)
        return list(self._events(batch, result))

    def release(self, work: SampleGroup) -> None:
        work.samples = ()

    def _finish(self, work: SampleGroup, samples: tuple[Sample, ...], end: float, stepped_s: float) -> Moved:
        images = encode_all(work, samples) if end == 0.0 else None
        return Moved(samples, stepped_s, images, self._clock())

    def _events(self, batch: Jump, result: Sequence[Moved]) -> Iterator[tuple[Ticket, Event]]:
        for work, choice, end, moved in zip(batch.works, batch.choices, batch.ends, result, strict=True):
            if not work.begun:
                work.begun, work.slowness = True, batch.slowness
            work.samples, work.t = moved.samples, end
            work.ticket.steps_executed += 1
            if moved.images is not None:
                work.ticket.choice = choice  # a plan made while the last step ran came too late to count
                work.ticket.stages.extend(self._stages(work, moved))
                yield work.ticket, Finished(moved.images)

    def _stages(self, work: SampleGroup, moved: Moved) -> tuple[Stage, ...]:
        """The three stages beside what the first plan promised for them; what is left of the promise is the queue."""
        ticket, costs = work.ticket, self._scheduler.costs
        assert ticket.started_s is not None and ticket.plan is not None
        encode_ms = self._scheduler.encode(work).mean_ms * work.slowness
        steps_ms = ticket.plan.steps * costs.step.at(work.items).mean_ms + costs.noise.at(work.items).mean_ms
        steps_ms *= work.slowness
        queue_ms = max(0.0, ticket.predicted.mean_ms - self._scheduler.overhead_ms - steps_ms - encode_ms)
        return (
            Stage("queue", queue_ms, ticket.admitted_s, ticket.started_s),
            Stage("steps", steps_ms, ticket.started_s, moved.stepped_s),
            Stage("encode", encode_ms, moved.stepped_s, moved.encoded_s),
        )


def begin(flow: FlowMap, work: SampleGroup) -> tuple[Sample, ...]:
    """The group's samples at t = 1: noise from (seed, place in the request) alone."""
    spec = work.spec
    return tuple(
        start(flow, seed=spec.seed, index=index, label=label, guidance=spec.guidance)
        for index, label in enumerate(spec.labels)
    )


def encode_all(work: SampleGroup, samples: Sequence[Sample]) -> tuple[EncodedImage, ...]:
    """Every sample of a group in the format that was asked for."""
    form, quality = work.spec.form, work.spec.encoding_quality
    return tuple(
        EncodedImage(sample.index, sample.label, encode(sample.x, form, quality), sample.executed) for sample in samples
    )
