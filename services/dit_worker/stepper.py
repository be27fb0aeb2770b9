"""Takes a step over rows of samples on the host's processor; `cuda_stepper` does it on a GPU."""

from typing import Protocol

import torch
from torch import Tensor

from services.dit_worker.model.flow_map import FlowMap
from services.dit_worker.sampler import Rows, take


class Stepper(Protocol):
    """One function evaluation for every row; no row's result depends on another's, but for rounding."""

    @property
    def device(self) -> torch.device:
        """Where `Rows.x` is to lie."""

    def __call__(self, rows: Rows) -> Tensor:
        """x at s, shaped as `rows.x` and on the same device; blocks until it is there, or is about to be read."""


class CpuStepper:
    """Forward passes of at most `most_rows`: beyond some size a pass no longer fits in the caches, and gets slower."""

    device = torch.device("cpu")

    def __init__(self, flow: FlowMap, most_rows: int) -> None:
        self._flow, self._most_rows = flow, most_rows

    def __call__(self, rows: Rows) -> Tensor:
        if len(rows) <= self._most_rows:
            return take(self._flow, rows)
        return torch.cat([take(self._flow, rows.cut(a, b)) for a, b in pass_edges(len(rows), self._most_rows)])


def pass_edges(rows: int, most: int) -> list[tuple[int, int]]:
    """Cuts rows into as few passes as hold at most `most` each, all of nearly the same size; (start, end) of each."""
    passes = -(-rows // most)
    return [(rows * number // passes, rows * (number + 1) // passes) for number in range(passes)]
