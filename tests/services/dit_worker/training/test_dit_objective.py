"""The objective's terms against finite differences and reverse-mode autograd, in float64."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.dit_worker.training.objective import (
    Batch,
    Times,
    draw_guidance,
    draw_times,
    interpolate,
    losses,
    terminal_velocity,
)

# torch scripts its own decompositions on the first forward-mode call.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

ROWS, JUMPS = 4, 3


@pytest.fixture
def network(tiny):
    return tiny.double()


@pytest.fixture
def target(network):
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    return other


def _batch(guidance: float = 1.0) -> Batch:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(2, ROWS, 1, 4, 4, generator=generator, dtype=torch.float64)
    times = torch.rand(2, JUMPS, generator=generator, dtype=torch.float64)
    t, s = times.amax(dim=0), times.amin(dim=0)
    flow = torch.rand(ROWS, generator=generator, dtype=torch.float64)
    scale = torch.full((ROWS,), guidance, dtype=torch.float64)
    return Batch(images[0], images[1], torch.tensor([0, 1, 2, 3]), scale, Times(t, s, flow))


def _map(network, batch: Batch, s: torch.Tensor) -> torch.Tensor:
    """f(x_t, t, s) = (s - t) F, written anew."""
    t, rows = batch.times.t, JUMPS
    x = interpolate(batch.x0[:rows], batch.noise[:rows], t)
    F = network(x, t, t - s, batch.labels[:rows], 1 / batch.guidance[:rows])
    return (s - t).view(-1, 1, 1, 1) * F


def test_terminal_velocity_is_the_maps_derivative_by_its_end(network):
    batch, epsilon = _batch(), 1e-6
    x = interpolate(batch.x0[:JUMPS], batch.noise[:JUMPS], batch.times.t)
    velocity, endpoint = terminal_velocity(network, x, batch.times, batch.labels[:JUMPS], batch.guidance[:JUMPS])
    s = batch.times.s
    difference = (_map(network, batch, s + epsilon) - _map(network, batch, s - epsilon)) / (2 * epsilon)
    torch.testing.assert_close(velocity, difference, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(endpoint, x + _map(network, batch, s))
    assert not endpoint.requires_grad


def test_the_gradient_flows_through_the_tangent(network, target):
    """Against finite differences of the whole loss with the stop-gradient parts held fixed."""
    batch, weight, epsilon = _batch(), network.blocks[0].expand.weight, 1e-6
    with torch.no_grad():
        x = interpolate(batch.x0[:JUMPS], batch.noise[:JUMPS], batch.times.t)
        endpoint = x + _map(network, batch, batch.times.s)
        s, ones = batch.times.s, batch.guidance[:JUMPS]
        wanted = target(endpoint, s, torch.zeros_like(s), batch.labels[:JUMPS], ones)

    def loss() -> float:
        velocity, _ = terminal_velocity(network, x, batch.times, batch.labels[:JUMPS], ones)
        return float((velocity - wanted).square().mean().detach())

    losses(network, target, batch, null_class=3).terminal.backward()
    for place in [(0, 0), (5, 3), (17, 9)]:
        gradient, kept = weight.grad[place].item(), weight.data[place].item()
        weight.data[place] = kept + epsilon
        above = loss()
        weight.data[place] = kept - epsilon
        below = loss()
        weight.data[place] = kept
        assert gradient == pytest.approx((above - below) / (2 * epsilon), rel=1e-4, abs=1e-9)


def test_the_target_network_gets_no_gradient(network, target):
    losses(network, target, _batch(guidance=2.0), null_class=3).total.backward()
    assert all(parameter.grad is None for parameter in target.parameters())
    assert any(parameter.grad is not None for parameter in network.parameters())


def test_flow_term_without_guidance_is_plain_flow_matching(network, target):
    batch = _batch()
    at = batch.times.flow
    x = (1 - at).view(-1, 1, 1, 1) * batch.x0 + at.view(-1, 1, 1, 1) * batch.noise
    F = network(x, at, torch.zeros_like(at), batch.labels, torch.ones_like(at))
    expected = (F - (batch.noise - batch.x0)).square().mean()
    torch.testing.assert_close(losses(network, target, batch, null_class=3).flow, expected)


def test_guidance_moves_the_flow_target_and_weighs_both_terms(network, target):
    batch, w = _batch(guidance=2.0), 2.0
    at = batch.times.flow
    x = interpolate(batch.x0, batch.noise, at)
    zeros, null = torch.zeros_like(at), torch.full_like(batch.labels, 3)
    wanted = w * (batch.noise - batch.x0) + (1 - w) * target(x, at, zeros, null, torch.ones_like(at))
    F = network(x, at, zeros, batch.labels, torch.full_like(at, 1 / w))
    terms = losses(network, target, batch, null_class=3)
    torch.testing.assert_close(terms.flow, (F - wanted).square().mean() / w**2)
    rows, s = batch.labels[:JUMPS], batch.times.s
    start = interpolate(batch.x0[:JUMPS], batch.noise[:JUMPS], batch.times.t)
    velocity, end = terminal_velocity(network, start, batch.times, rows, batch.guidance[:JUMPS])
    aim = target(end, s, torch.zeros_like(s), rows, torch.full_like(s, 1 / w))
    torch.testing.assert_close(terms.terminal, (velocity - aim).square().mean() / w**2)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_times_are_in_order_and_inside(seed):
    times = draw_times(256, 256, torch.Generator().manual_seed(seed))
    for values in (times.s, times.t, times.flow):
        assert torch.isfinite(values).all()
    assert (times.s > 0).all()
    assert (times.s < times.t).all()
    assert (times.t <= 1 + 1e-6).all()
    assert ((times.flow > 0) & (times.flow < 1)).all()


def test_the_truncated_draw_is_the_distribution_it_says():
    """Below the room that a gap leaves, s has the quantiles that rejection sampling gives."""
    times = draw_times(200_000, 1, torch.Generator().manual_seed(0))
    gap = times.t - times.s
    generator = torch.Generator().manual_seed(1)
    s = torch.sigmoid(-0.4 + torch.randn(200_000, generator=generator))
    near = (gap > 0.28) & (gap < 0.32)
    allowed = s[s < 0.7]
    levels = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(
        torch.quantile(times.s[near], levels), torch.quantile(allowed, levels), rtol=0, atol=0.012
    )


def test_dropped_labels_become_the_null_class_without_guidance(tiny):
    labels = torch.zeros(4000, dtype=torch.int64)
    drawn, guidance = draw_guidance(labels, tiny.topology, 0.25, 3.0, torch.Generator().manual_seed(0))
    dropped = drawn == tiny.topology.null_class
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (guidance[dropped] == 1).all()
    assert (guidance[~dropped] > 1).all()
    assert (guidance <= 3).all()
