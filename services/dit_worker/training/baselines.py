"""What the model must beat: images without a network, and the same weights used without jumps."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from services.dit_worker.model.flow_map import FlowMap
from services.dit_worker.model.topology import Topology
from services.dit_worker.training.data import Split


@dataclass(frozen=True, slots=True)
class EulerFlow:
    """The flow map's own velocity u(x, t) = F(x, t, t) as a plain Euler step: the same weights, no jump."""

    flow: FlowMap

    @property
    def topology(self) -> Topology:
        return self.flow.topology

    def average_velocity(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor, guidance: Tensor) -> Tensor:
        return self.flow.average_velocity(x, t, t, labels, guidance)


def class_gaussians(train: Split, labels: Tensor, generator: torch.Generator) -> Tensor:
    """One draw a label from the Gaussian of that class's pixels; [n, channels, height, width]."""
    images = torch.empty(len(labels), *train.images.shape[1:])
    for label in range(int(labels.max()) + 1):
        pixels = train.images[train.labels == label].flatten(1)
        mean, rows = pixels.mean(dim=0), labels == label
        # A normal mixture of n centred images, over sqrt(n - 1), has just their covariance, whatever the rank.
        mix = torch.randn(int(rows.sum()), len(pixels), generator=generator) / math.sqrt(len(pixels) - 1)
        images[rows] = (mean + mix @ (pixels - mean)).view(-1, *train.images.shape[1:])
    return images


def class_means(train: Split, labels: Tensor) -> Tensor:
    """The mean image of each label; [n, channels, height, width]."""
    means = torch.stack(
        [train.images[train.labels == label].mean(dim=0) for label in range(int(train.labels.max()) + 1)]
    )
    return means[labels]
