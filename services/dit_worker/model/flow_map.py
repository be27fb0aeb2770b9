"""The contract between the sampler and whatever model drives it."""

from typing import Protocol

from torch import Tensor

from services.dit_worker.model.topology import Topology


class FlowMap(Protocol):
    """A model that jumps from any time t to any earlier time s in one evaluation.

    Time runs from 1 (noise) to 0 (data). The jump is x_s = x_t + (s - t) * F(x_t, t, s).
    """

    @property
    def topology(self) -> Topology: ...

    def average_velocity(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor, guidance: Tensor) -> Tensor:
        """F(x_t, t, s), row by row: no row's result depends on another's.

        x: [batch, channels, height, width] float; t, s, guidance: [batch] float, 0 <= s <= t <= 1 and
        guidance >= 1; labels: [batch] int64, the null class allowed. Returns a tensor shaped as x.
        """
        ...


def jump(flow: FlowMap, x: Tensor, t: Tensor, s: Tensor, labels: Tensor, guidance: Tensor) -> Tensor:
    """One function evaluation: x at time s from x at time t; shapes as in FlowMap."""
    return x + (s - t)[:, None, None, None] * flow.average_velocity(x, t, s, labels, guidance)
