"""The Terminal Velocity Matching objective (arXiv 2511.19797), from the paper's formulas.

With x_t = (1 - t) x0 + t eps and v = eps - x0, the network F(x, t, s) gives the map f(x_t, t, s) = (s - t) F
and, at s = t, the velocity u(x, t) = F(x, t, t). Two terms, both weighted by 1 / w^2:

    terminal velocity   || df/ds - u_ema(sg[x_t + f], s) ||^2      df/ds = F + (s - t) dF/ds
    flow matching       || F(x_s', s', s') - (w v + (1 - w) u_ema(x_s', s', null class, w = 1)) ||^2

dF/ds is a Jacobian-vector product with a tangent on s alone, and the gradient flows through it.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from services.dit_worker.model.topology import Topology

GAP_MEAN, GAP_STD = -0.8, 1.0
END_MEAN, END_STD = -0.4, 1.0


class Network(Protocol):
    """F(x, t, t - s, labels, 1 / w); shapes as Dit.forward."""

    def __call__(self, x: Tensor, t: Tensor, gap: Tensor, labels: Tensor, inverse_guidance: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Times:
    """The "gap*" draw: jumps from t to s = t - gap, and independent flow-matching times; [rows] in (0, 1)."""

    t: Tensor
    s: Tensor
    flow: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """x0, noise: [batch, channels, height, width]; labels: [batch], null if dropped; guidance: [batch] >= 1.

    The first len(times.t) rows take the terminal-velocity term; times.flow covers every row.
    """

    x0: Tensor
    noise: Tensor
    labels: Tensor
    guidance: Tensor
    times: Times


@dataclass(frozen=True, slots=True)
class Losses:
    terminal: Tensor
    flow: Tensor

    @property
    def total(self) -> Tensor:
        return self.terminal + self.flow


def draw_times(jump_rows: int, flow_rows: int, generator: torch.Generator) -> Times:
    """s is logit-normal, truncated below 1 - gap (inverse distribution), so that t never exceeds 1."""
    gap = torch.sigmoid(GAP_MEAN + GAP_STD * torch.randn(jump_rows, generator=generator))
    ceiling = torch.special.ndtr((torch.logit(1 - gap) - END_MEAN) / END_STD)
    share = torch.rand(jump_rows, generator=generator).clamp(min=1e-6) * ceiling
    s = torch.sigmoid(END_MEAN + END_STD * torch.special.ndtri(share))
    flow = torch.sigmoid(END_MEAN + END_STD * torch.randn(flow_rows, generator=generator))
    return Times(t=s + gap, s=s, flow=flow)


def draw_guidance(
    labels: Tensor,
    topology: Topology,
    label_drop: float,
    guidance_max: float,
    generator: torch.Generator,
    guided_share: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(labels with some dropped to the null class, guidance).

    A share of `guided_share` of the rows has guidance in [1, guidance_max], the others and the dropped have 1.
    """
    dropped = torch.rand(len(labels), generator=generator) < label_drop
    place = torch.rand(len(labels), generator=generator) / guided_share
    guidance = torch.where(place < 1, 1 + (guidance_max - 1) * place, 1.0)
    return labels.masked_fill(dropped, topology.null_class), guidance.masked_fill(dropped, 1.0)


def interpolate(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t noise."""
    weight = _per_row(t)
    return (1 - weight) * x0 + weight * noise


def terminal_velocity(
    network: Network, x: Tensor, times: Times, labels: Tensor, guidance: Tensor
) -> tuple[Tensor, Tensor]:
    """(df/ds with its graph, the endpoint x_t + f without one), both shaped as x."""
    inverse = guidance.reciprocal()

    def at_end(s: Tensor) -> Tensor:
        return network(x, times.t, times.t - s, labels, inverse)

    F, dF_ds = torch.func.jvp(at_end, (times.s,), (torch.ones_like(times.s),))  # type: ignore[misc]
    jump = _per_row(times.s - times.t)
    return F + jump * dF_ds, (x + jump * F).detach()


def losses(network: Network, target: Network, batch: Batch, null_class: int) -> Losses:
    """Both terms, each a mean over rows and pixels. `target` is the EMA network; no gradient reaches it."""
    return Losses(_terminal_loss(network, target, batch), _flow_loss(network, target, batch, null_class))


def _terminal_loss(network: Network, target: Network, batch: Batch) -> Tensor:
    rows, times = len(batch.times.t), batch.times
    labels, guidance = batch.labels[:rows], batch.guidance[:rows]
    x = interpolate(batch.x0[:rows], batch.noise[:rows], times.t)
    velocity, endpoint = terminal_velocity(network, x, times, labels, guidance)
    with torch.no_grad():
        wanted = target(endpoint, times.s, torch.zeros_like(times.s), labels, guidance.reciprocal())
    return _weighted(velocity - wanted, guidance)


def _flow_loss(network: Network, target: Network, batch: Batch, null_class: int) -> Tensor:
    at = batch.times.flow
    x = interpolate(batch.x0, batch.noise, at)
    F = network(x, at, torch.zeros_like(at), batch.labels, batch.guidance.reciprocal())
    wanted = _guided_velocity(target, x, batch, null_class)
    return _weighted(F - wanted, batch.guidance)


def _guided_velocity(target: Network, x: Tensor, batch: Batch, null_class: int) -> Tensor:
    velocity = batch.noise - batch.x0
    rows = torch.nonzero(batch.guidance != 1)[:, 0]  # elsewhere the formula is the plain velocity
    if not len(rows):
        return velocity
    at, weight = batch.times.flow[rows], _per_row(batch.guidance[rows])
    with torch.no_grad():
        null = torch.full_like(batch.labels[rows], null_class)
        unguided = target(x[rows], at, torch.zeros_like(at), null, torch.ones_like(at))
    return velocity.index_copy(0, rows, (weight * velocity[rows] + (1 - weight) * unguided).to(velocity.dtype))


def _weighted(residual: Tensor, guidance: Tensor) -> Tensor:
    return (residual.square() / _per_row(guidance).square()).mean()


def _per_row(values: Tensor) -> Tensor:
    return values[:, None, None, None]
