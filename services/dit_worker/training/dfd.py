"""DFD: the Frechet distance between sets of images, on the features of our own small network.

It is not FID (no Inception network, no 50,000 samples) and compares with no published figure. With means m
and covariances C of two feature sets,

    d^2 = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)        (Dowson and Landau, 1982)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LOW, HIGH = 0.025, 0.975


@dataclass(frozen=True, slots=True)
class Moments:
    """mean: [features]; covariance: [features, features]; root: its symmetric square root. All float64."""

    mean: Tensor
    covariance: Tensor
    root: Tensor


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def moments(features: Tensor) -> Moments:
    """features: [n, features], n at least 2."""
    wide = features.double()
    covariance = torch.cov(wide.T)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    return Moments(wide.mean(dim=0), covariance, root)


def frechet(a: Moments, b: Moments) -> float:
    """The squared distance above; 0 for equal moments."""
    between = torch.linalg.eigvalsh(a.root @ b.covariance @ a.root).clamp(min=0).sqrt().sum()
    spread = torch.trace(a.covariance) + torch.trace(b.covariance) - 2 * between
    return float((a.mean - b.mean).square().sum() + spread)


class Bootstrap:
    """Resamples of held-out images and of noise seeds, shared by every figure so that differences pair."""

    def __init__(self, held_out: Tensor, seeds: int, resamples: int, generator: torch.Generator) -> None:
        """held_out: [n, features]."""
        count = len(held_out)
        rows = torch.randint(count, (resamples, count), generator=generator)
        self.reference = moments(held_out)
        self.resampled = [moments(held_out[chosen]) for chosen in rows]
        self.seeds = torch.randint(seeds, (resamples, seeds), generator=generator)

    def distances(self, generated: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """One feature set per seed, or one set alone: ([seeds] distances, [resamples] mean distances)."""
        sets = [moments(features) for features in generated]
        point = torch.tensor([frechet(one, self.reference) for one in sets])
        spread = torch.tensor([[frechet(one, reference) for one in sets] for reference in self.resampled])
        chosen = self.seeds[:, : len(sets)] % len(sets)  # of fewer seeds the first ones
        return point, spread.gather(1, chosen).mean(dim=1)


def estimate(point: Tensor, spread: Tensor, *, least: float = -math.inf) -> Estimate:
    """The mean over seeds, with the bootstrap's 95 % interval moved to be centred on it.

    A resample repeats images, which biases every distance upward by the same amount; only its width is used. No
    distance lies below 0, so neither does an interval of one; a difference may.
    """
    value = float(point.mean())
    low, high = torch.quantile(spread - spread.mean(), torch.tensor([LOW, HIGH])).tolist()
    return Estimate(value, max(least, value + low), value + high)
