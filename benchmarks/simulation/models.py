"""The three kinds of work as data: what steps cost, the rungs, and the sizes that are asked for.

`IMAGES` and `FRAMES` are planned by the schedulers of the real workers; `TEXTS` by `benchmarks.simulation.text`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

from benchmarks.experiment.arrivals import Arrival
from benchmarks.simulation.text import DecodeScheduler, VirtualText, virtual_text
from headway.cost import ZERO, Cost, Load, StepCurve
from headway.engine import Scheduler
from headway.planning import Setting
from headway.quality import Ladder, Rung
from headway.ticket import Ticket
from headway.v1 import common_pb2
from services.dit_worker.encode import Format
from services.dit_worker.model.guidance import UNGUIDED
from services.dit_worker.sample_group import ImagesSpec, Jump, SampleGroup
from services.dit_worker.scheduler import DitScheduler, ImageCosts
from services.router.placement import FRAME_PIXELS
from services.splat_worker.camera import look_at
from services.splat_worker.costs import SceneCosts
from services.splat_worker.encode import Encoding
from services.splat_worker.frame import Frame, FrameSpec, Shot
from services.splat_worker.library import LoadedScene
from services.splat_worker.scheduler import SplatScheduler
from services.text_worker.sequence import LADDER as TEXT_LADDER

ASSET = "virtual"
RUNG_QUANTILE, ADMISSION_QUANTILE = 0.9, 0.999
FREE = StepCurve(((1, ZERO),))
Curves = Mapping[tuple[str, str], StepCurve]
"""As `services.router.view.Report` has them."""


@dataclass(frozen=True, slots=True)
class Done:
    """A work that a step has ended, and what it got."""

    work: Any
    rung: Rung


class Model(Protocol):
    """One kind of work on one kind of machine. Costs are calibrated; what a step really takes, the host says."""

    name: str
    kind: common_pb2.Kind
    ladder: Ladder
    sizes: tuple[int, ...]
    """Items that requests ask for, in equal shares."""
    max_batch: int
    spread: float
    """Standard deviation of a step's time over its mean."""

    def slower(self, factor: float) -> "Model":
        """The same work on a machine on which every step takes so many times as long."""

    def scheduler(self) -> Scheduler[Any]: ...

    def work(self, ticket: Ticket, items: int) -> Any:
        """What the scheduler schedules: nothing of it is done."""

    def apply(self, batch: Any) -> list[Done]:
        """Takes a step's result into its works. Mutates them."""

    def curves(self) -> Curves:
        """What its steps cost, as it reports them."""

    def reported(self, load: Load) -> Load:
        """A load as it reports it."""

    def sizes_of(self, items: int) -> dict[str, int]:
        """A request's size, as `services.router.placement.Ask` has it."""

    def least_ms(self, items: int, level: int) -> float:
        """Device time of a request at this rung, at the best batch efficiency."""

    def solo_ms(self, items: int) -> float:
        """What a request takes alone at the top rung."""

    def quality(self, items: int, level: int) -> float:
        """Normalised quality of a request of this size at this rung."""


def mean_least_ms(model: Model) -> float:
    """Device time of a request in the mean at the lowest rung: load 1.0 keeps one device just busy with that."""
    lowest = len(model.ladder.rungs) - 1
    return sum(model.least_ms(items, lowest) for items in model.sizes) / len(model.sizes)


def options(model: Model, arrival: Arrival) -> tuple[tuple[float, float], ...]:
    """(quality, seconds of a device) of each rung, as the clairvoyant bound has it."""
    levels = range(len(model.ladder.rungs))
    return tuple((model.quality(arrival.items, at), model.least_ms(arrival.items, at) / 1000) for at in levels)


@dataclass(frozen=True)
class ImageModel:
    """Images: items are images, which share steps with those of others."""

    step: StepCurve
    ladder: Ladder
    sizes: tuple[int, ...] = (8, 16, 32)
    max_batch: int = 64
    spread: float = 0.0
    overhead_ms: float = 1.0
    encode: StepCurve = FREE
    name: str = "image"
    kind: common_pb2.Kind = common_pb2.KIND_IMAGE

    def slower(self, factor: float) -> "ImageModel":
        return replace(self, step=self.step.scaled(Cost(factor)), encode=self.encode.scaled(Cost(factor)))

    def scheduler(self) -> DitScheduler:
        costs = ImageCosts(self.step, FREE, {Format.RAW: self.encode})
        return DitScheduler(costs, self.max_batch, RUNG_QUANTILE, ADMISSION_QUANTILE, self.overhead_ms)

    def work(self, ticket: Ticket, items: int) -> SampleGroup:
        return SampleGroup(ticket, ImagesSpec((0,) * items, 0, UNGUIDED, Format.RAW, 90))

    def apply(self, batch: Jump) -> list[Done]:
        done = []
        for work, choice, end in zip(batch.works, batch.choices, batch.ends, strict=True):
            work.begun, work.t, work.job = True, end, None
            work.ticket.steps_executed += 1
            if end == 0.0:
                done.append(Done(work, choice.option.rung))
        return done

    def curves(self) -> Curves:
        return {("", ""): self.step}

    def reported(self, load: Load) -> Load:
        return load

    def sizes_of(self, items: int) -> dict[str, int]:
        return {"items": items}

    def least_ms(self, items: int, level: int) -> float:
        steps = self.ladder.rungs[level].nfe or 1
        best_ms = min(self.step.at(size).mean_ms / size for size in range(1, self.max_batch + 1))
        return items * (steps * best_ms + self.encode.at(items).mean_ms / items)

    def solo_ms(self, items: int) -> float:
        steps = self.ladder.top.nfe or 1
        return steps * self.step.step(items, self.max_batch).mean_ms + self.encode.at(items).mean_ms

    def quality(self, items: int, level: int) -> float:
        return self.ladder.rungs[level].quality


@dataclass(frozen=True, slots=True)
class _Scene:
    """All that a splat worker's scheduler reads of a scene; nothing is drawn."""

    hash: str = ASSET


_SIDE = math.isqrt(FRAME_PIXELS)
_CAMERA = look_at((0.0, 0.0, -1.0), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0), 60.0, _SIDE, _SIDE)
_FRAME = FrameSpec(cast(LoadedScene, _Scene()), _CAMERA, (0.0, 0.0, 0.0), None, Encoding.RAW, 90)


@dataclass(frozen=True)
class FrameModel:
    """Splats: a request is one frame of 512 x 512, and a frame is one step."""

    frame_ms: tuple[float, ...]
    """By rung, best first."""
    ladder: Ladder
    spread: float = 0.0
    overhead_ms: float = 1.0
    sizes: tuple[int, ...] = (1,)
    max_batch: int = 1
    name: str = "splat"
    kind: common_pb2.Kind = common_pb2.KIND_SPLAT

    def slower(self, factor: float) -> "FrameModel":
        return replace(self, frame_ms=tuple(ms * factor for ms in self.frame_ms))

    def scheduler(self) -> SplatScheduler:
        render = {label: curve for (_, label), curve in self.curves().items()}
        costs = SceneCosts(render, {Encoding.RAW: FREE}, FREE)
        return SplatScheduler({ASSET: costs}, RUNG_QUANTILE, ADMISSION_QUANTILE, self.overhead_ms)

    def work(self, ticket: Ticket, items: int) -> Frame:
        return Frame(ticket, _FRAME)

    def apply(self, batch: Shot) -> list[Done]:
        return [Done(work, batch.choice.option.rung) for work in batch.works]

    def curves(self) -> Curves:
        rows = zip(self.ladder.rungs, self.frame_ms, strict=True)
        return {("", rung.label): StepCurve(((1, Cost(ms, (self.spread * ms) ** 2)),)) for rung, ms in rows}

    def reported(self, load: Load) -> Load:
        return load

    def sizes_of(self, items: int) -> dict[str, int]:
        return {"pixels": FRAME_PIXELS}

    def least_ms(self, items: int, level: int) -> float:
        return self.frame_ms[level]

    def solo_ms(self, items: int) -> float:
        return self.frame_ms[0]

    def quality(self, items: int, level: int) -> float:
        return self.ladder.rungs[level].quality


@dataclass(frozen=True)
class TextModel:
    """Text: items are new tokens."""

    token: StepCurve
    """Of one decode iteration, by texts in it."""
    prompt_tokens: int = 64
    prefill_token_ms: float = 0.05
    stride: int = 8
    """Decode iterations that are simulated as one step."""
    sizes: tuple[int, ...] = (32, 64, 96)
    max_batch: int = 8
    spread: float = 0.0
    overhead_ms: float = 1.0
    name: str = "text"
    kind: common_pb2.Kind = common_pb2.KIND_TEXT
    ladder: Ladder = field(default=TEXT_LADDER)

    @property
    def prefill(self) -> Cost:
        return Cost(self.prompt_tokens * self.prefill_token_ms)

    def slower(self, factor: float) -> "TextModel":
        token = self.token.scaled(Cost(factor))
        return replace(self, token=token, prefill_token_ms=self.prefill_token_ms * factor)

    def scheduler(self) -> DecodeScheduler:
        step = StepCurve(tuple((size, cost.times(self.stride)) for size, cost in self.token.points))
        planning = Setting(
            0.0, step, self.max_batch,
            rung_quantile=RUNG_QUANTILE, admission_quantile=ADMISSION_QUANTILE, overhead_ms=self.overhead_ms,
        )  # fmt: skip
        return DecodeScheduler(step, planning)

    def work(self, ticket: Ticket, items: int) -> VirtualText:
        return virtual_text(ticket, items, self.prefill, self.stride)

    def apply(self, batch: Any) -> list[Done]:
        for work in batch.works:
            work.done, work.job = work.done + 1, None
            work.ticket.steps_executed += 1
        return [Done(work, work.rung_at(work.done)) for work in batch.works if work.ticket.key in batch.ends]

    def curves(self) -> Curves:
        return {("", ""): self.token}

    def reported(self, load: Load) -> Load:
        return replace(load, steps_left=load.steps_left * self.stride)

    def sizes_of(self, items: int) -> dict[str, int]:
        return {"tokens": items, "prompt_tokens": self.prompt_tokens}

    def least_ms(self, items: int, level: int) -> float:
        token_ms = self.token.at(self.max_batch).mean_ms / self.max_batch
        return self.prefill.mean_ms + self.quality(items, level) * items * token_ms

    def solo_ms(self, items: int) -> float:
        return self.prefill.mean_ms + items * self.token.at(1).mean_ms

    def quality(self, items: int, level: int) -> float:
        """The share of its tokens: no less than the floor of 16, in whole steps."""
        share = self.ladder.rungs[level].token_share or 0.0
        steps = -(-max(16, share * items) // self.stride)
        return min(1.0, steps * self.stride / items)


def curve(points: Sequence[tuple[int, float]], spread: float) -> StepCurve:
    """From (items, ms); `spread` is the standard deviation over the mean."""
    return StepCurve(tuple((size, Cost(ms, (spread * ms) ** 2)) for size, ms in points))


def default_models(spread: float = 0.0) -> tuple[ImageModel, FrameModel, TextModel]:
    """Three kinds of about the size of the shipped models on a few cores."""
    image_rungs = ((4, 1.0), (2, 0.9), (1, 0.6))
    frame_rungs = ((1.0, 1.0), (0.5, 0.8), (0.25, 0.6), (0.1, 0.4))
    return (
        ImageModel(
            curve(((1, 4.0), (16, 12.0), (64, 40.0)), spread),
            Ladder(tuple(Rung(str(nfe), quality, nfe=nfe) for nfe, quality in image_rungs)),
            spread=spread,
        ),
        FrameModel(
            (30.0, 18.0, 10.0, 6.0),
            Ladder(tuple(Rung(f"{share:g}", quality, gaussian_share=share) for share, quality in frame_rungs)),
            spread=spread,
        ),
        TextModel(curve(((1, 3.0), (4, 4.0), (8, 6.0)), spread), spread=spread),
    )
