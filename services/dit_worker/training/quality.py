"""Measure a model: DFD per step count, paired over noise seeds, beside what it must be compared with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from services.dit_worker.model.flow_map import FlowMap
from services.dit_worker.model.guidance import UNGUIDED, Guidance
from services.dit_worker.sampler import finish, start
from services.dit_worker.training.baselines import EulerFlow, class_gaussians, class_means
from services.dit_worker.training.data import DataSet, Split
from services.dit_worker.training.dfd import Bootstrap, Estimate, estimate, frechet, moments
from services.dit_worker.training.extractor import Extractor

STEP_COUNTS = (1, 2, 4, 8)
GENERATE_BATCH = 128
NEAREST = 1024
BOOTSTRAP_SEED = 20251121
CHOOSING_SEEDS = (1000, 1001)


@dataclass(frozen=True, slots=True)
class Protocol:
    """Noise seeds 0 .. seeds - 1, and in each one image for every label of the data set's `labels`.

    The comparison with plain Euler and with guidance takes the first `few_seeds`. `sample` images of seed 0 are
    measured by themselves too: a figure that is quick to reproduce.
    """

    seeds: int = 8
    few_seeds: int = 2
    resamples: int = 200
    sample: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.few_seeds <= self.seeds:
            raise ValueError(f"few_seeds must lie in 1..{self.seeds}, got {self.few_seeds}")


@dataclass(frozen=True, slots=True)
class Figure:
    """One DFD: its estimate, and the distance of each seed that went into it."""

    estimate: Estimate
    per_seed: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Measurement:
    """Figures by step count or name, paired differences, and the mean pixel L2 distance to the nearest train image.

    All but `unguided` with the model's own guidance. `sample`: the quick figure by step count.
    """

    model: dict[int, Figure]
    euler: dict[int, Figure]
    unguided: dict[int, Figure]
    sample: dict[int, float]
    gaussian: Figure
    means: Figure
    floor: Figure
    degradation: dict[str, Estimate]
    nearest_train: dict[str, float]
    protocol: Protocol


def generate(flow: FlowMap, labels: Tensor, steps: int, seed: int, guidance: Guidance = UNGUIDED) -> Tensor:
    """One image a label as they would be served, clamped to [-1, 1]; [n, channels, height, width].

    Image i's noise is that of (seed, i), so every step count starts from the same noise.
    """
    samples = [start(flow, seed=seed, index=i, label=y, guidance=guidance) for i, y in enumerate(labels.tolist())]
    chunks = [samples[at : at + GENERATE_BATCH] for at in range(0, len(samples), GENERATE_BATCH)]
    images = [sample.x for chunk in chunks for sample in finish(flow, chunk, steps)]
    return torch.stack(images).clamp(-1, 1)


def measure(
    flow: FlowMap, extractor: Extractor, data: DataSet, protocol: Protocol, top: int, guidance: Guidance
) -> Measurement:
    """Every figure of the card; minutes on one core at the default protocol. `top` is the ladder's best step count."""
    labels, train, few = data.labels, data.train, protocol.few_seeds
    sample = labels[: protocol.sample]
    meter = _Meter(extractor, data, protocol)
    guided, plain = partial(generate, guidance=guidance), partial(generate, flow, labels)
    model = {n: meter.over_seeds(partial(guided, flow, labels, n)) for n in STEP_COUNTS}
    euler = {n: meter.over_seeds(partial(guided, EulerFlow(flow), labels, n), few) for n in STEP_COUNTS}
    unguided = {n: meter.over_seeds(partial(plain, n), few) for n in STEP_COUNTS if guidance != UNGUIDED}
    gaussian = meter.over_seeds(lambda seed: class_gaussians(train, labels, _seeded(seed)).clamp(-1, 1))
    return Measurement(
        model={n: spread.figure() for n, spread in model.items()},
        euler={n: spread.figure() for n, spread in euler.items()},
        unguided={n: spread.figure() for n, spread in unguided.items()},
        sample={n: sample_dfd(flow, extractor, data.held_out, sample, n, guidance) for n in STEP_COUNTS},
        gaussian=gaussian.figure(),
        means=meter.once(class_means(train, labels)).figure(),
        floor=meter.once(train.images).figure(),
        degradation={f"{n}-{top}": model[n].minus(model[top]) for n in STEP_COUNTS if n != top},
        nearest_train={
            f"model, {top} steps": nearest(guided(flow, labels[:NEAREST], top, seed=0), train.images),
            "held-out images": nearest(data.held_out.images[:NEAREST], train.images),
        },
        protocol=protocol,
    )


def mean_dfds(
    flow: FlowMap, extractor: Extractor, data: DataSet, protocol: Protocol, guidance: Guidance
) -> dict[int, float]:
    """The mean over all noise seeds by step count, without intervals: to set one training run beside another."""
    wanted = moments(extractor(data.held_out.images))

    def mean(steps: int) -> float:
        found = [extractor(generate(flow, data.labels, steps, seed, guidance)) for seed in range(protocol.seeds)]
        return sum(frechet(moments(features), wanted) for features in found) / len(found)

    return {steps: mean(steps) for steps in STEP_COUNTS}


def sample_dfd(
    flow: FlowMap, extractor: Extractor, held_out: Split, labels: Tensor, steps: int, guidance: Guidance
) -> float:
    """DFD of seed 0's images of these labels alone: biased upwards, but seconds to reproduce."""
    found, wanted = extractor(generate(flow, labels, steps, 0, guidance)), extractor(held_out.images)
    return frechet(moments(found), moments(wanted))


def nearest(images: Tensor, train: Tensor) -> float:
    """Mean over images of the L2 distance to the nearest train image."""
    return float(torch.cdist(images.flatten(1), train.flatten(1)).min(dim=1).values.mean())


def normalised(dfd: float, top: float, gaussian: float) -> float:
    """1 at the top rung's DFD, 0 at that of the Gaussian without a network, clipped to [0, 1].

    Where even the top rung is no better than the Gaussian, what is worse than the top has 0.
    """
    if dfd > top >= gaussian:
        return 0.0
    return min(1.0, max(0.0, 1 - (dfd - top) / (gaussian - top) if dfd > top else 1.0))


def best_guidance(
    flow: FlowMap, extractor: Extractor, data: DataSet, ladder: Sequence[int], weights: Sequence[float]
) -> Guidance:
    """For each rung the weight that comes nearest to the train images, by noise that no figure is measured with.

    Held-out images choose nothing.
    """
    wanted = moments(extractor(data.train.images))

    def distance(steps: int, weight: float) -> float:
        tries = [generate(flow, data.labels, steps, seed, Guidance.fixed(weight)) for seed in CHOOSING_SEEDS]
        return sum(frechet(moments(extractor(images)), wanted) for images in tries)

    return Guidance.by_steps({steps: min(weights, key=partial(distance, steps)) for steps in ladder})


@dataclass(frozen=True, slots=True)
class _Spread:
    """point: [seeds]; resampled: [resamples]."""

    point: Tensor
    resampled: Tensor

    def figure(self) -> Figure:
        return Figure(estimate(self.point, self.resampled, least=0.0), tuple(self.point.tolist()))

    def minus(self, other: "_Spread") -> Estimate:
        return estimate(self.point - other.point, self.resampled - other.resampled)


class _Meter:
    """Feature extraction and one bootstrap shared by all arms."""

    def __init__(self, extractor: Extractor, data: DataSet, protocol: Protocol) -> None:
        held_out = extractor(data.held_out.images)
        self.extractor, self.protocol = extractor, protocol
        self.bootstrap = Bootstrap(held_out, protocol.seeds, protocol.resamples, _seeded(BOOTSTRAP_SEED))

    def over_seeds(self, images: Callable[[int], Tensor], seeds: int | None = None) -> _Spread:
        count = self.protocol.seeds if seeds is None else seeds
        return self._spread([self.extractor(images(seed)) for seed in range(count)])

    def once(self, images: Tensor) -> _Spread:
        return self._spread([self.extractor(images)])

    def _spread(self, features: Sequence[Tensor]) -> _Spread:
        return _Spread(*self.bootstrap.distances(features))


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
