"""Ops as torch sees them: torch.func, dual tensors, autograd and torch.compile, on the CPU's reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from plain_attention import assert_close, plain_attention
from torch.autograd import forward_ad

from kernels.flash_attention import flash_attention
from kernels.flash_attention_jvp import flash_attention_jvp
from kernels.paged_attention import PagedBatch, paged_attention
from kernels.ragged import Ragged

# torch.func.jvp and torch.compile import parts of torch that warn about themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]

HEADS, HEAD_DIM, WIDTH = 2, 16, 32
Weights = list[torch.Tensor]
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    o = flash_attention(q, k, v, causal=True)
    assert isinstance(o, torch.Tensor)
    return o


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return plain_attention(q, k, v, True, HEAD_DIM**-0.5)[0]


def transformer(attend: Attend, x: torch.Tensor, weights: Weights) -> torch.Tensor:
    """Two residual blocks of attention and a nonlinearity.  # [batch, tokens, WIDTH]"""
    for _ in range(2):
        q, k, v = ((x @ w).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2) for w in weights[:3])
        x = x + attend(q, k, v).transpose(1, 2).flatten(2) @ weights[3]
        x = x + torch.tanh(x @ weights[4])
    return x


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, Weights]:
    torch.manual_seed(0)
    x, tangent = (torch.randn(2, 7, WIDTH, dtype=torch.float64) for _ in range(2))
    return x, tangent, [torch.randn(WIDTH, WIDTH, dtype=torch.float64) / WIDTH**0.5 for _ in range(5)]


Inputs = tuple[torch.Tensor, torch.Tensor, Weights]


def test_torch_func_jvp_through_a_transformer(inputs: Inputs) -> None:
    x, tangent, weights = inputs
    found, expected = (
        torch.func.jvp(partial(transformer, attend, weights=weights), (x,), (tangent,)) for attend in (ours, plain)
    )
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, 1e-12)


def tangent_loss(attend: Attend, inputs: Inputs) -> Callable[[Weights], torch.Tensor]:
    """A loss of value and tangent, as TVM's: the gradient runs backward through the jvp."""
    x, tangent, _ = inputs

    def loss(weights: Weights) -> torch.Tensor:
        y, dy = torch.func.jvp(lambda x: transformer(attend, x, weights), (x,), (tangent,))
        return dy.square().sum() + y.sin().sum()

    return loss


def test_jvp_inside_torch_func_grad(inputs: Inputs) -> None:
    found, expected = (torch.func.grad(tangent_loss(attend, inputs))(inputs[2]) for attend in (ours, plain))
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, 1e-12)


def test_jvp_inside_autograd(inputs: Inputs) -> None:
    leaves = [weight.clone().requires_grad_() for weight in inputs[2]]
    found, expected = (torch.autograd.grad(tangent_loss(attend, inputs)(leaves), leaves) for attend in (ours, plain))
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, 1e-12)


def test_dual_tensors(inputs: Inputs) -> None:
    x, tangent, weights = inputs
    with forward_ad.dual_level():
        y = forward_ad.unpack_dual(transformer(ours, forward_ad.make_dual(x, tangent), weights))
    _, expected = torch.func.jvp(lambda x: transformer(plain, x, weights), (x,), (tangent,))
    assert_close(y.tangent, expected, 1e-12)


def test_an_outer_tangent_reaches_attention_inside_an_inner_jvp(inputs: Inputs) -> None:
    """There the inner level sees no tangent, and the autograd function's own forward-mode rule has to answer."""
    x, tangent, weights = inputs

    def outer(attend: Attend) -> tuple[torch.Tensor, torch.Tensor]:
        def scaled(x: torch.Tensor) -> torch.Tensor:
            inner = torch.func.jvp(lambda s: transformer(attend, x, weights) * s, (x[0, 0, 0],), (x[0, 0, 1],))
            return inner[0] + inner[1]

        return torch.func.jvp(scaled, (x,), (tangent,))

    for a, b in zip(outer(ours), outer(plain), strict=True):
        assert_close(a, b, 1e-12)


def test_plain_gradients_and_those_of_the_lse(inputs: Inputs) -> None:
    q, k, v = (torch.randn(1, 4, 5, 16, dtype=torch.float64, requires_grad=True) for _ in range(3))
    o, lse = flash_attention(q, k[:, :2], v[:, :2], causal=True, return_lse=True)
    expected = plain_attention(q, k[:, :2], v[:, :2], True, 0.25)
    found = torch.autograd.grad(o.sin().sum() + lse.cos().sum(), (q, k, v))
    wanted = torch.autograd.grad(expected[0].sin().sum() + expected[1].cos().sum(), (q, k, v))
    for a, b in zip(found, wanted, strict=True):
        assert_close(a, b, 1e-12)


@pytest.mark.parametrize("ragged", [None, Ragged.from_lengths([3, 0, 4], [5, 2, 4])])
def test_gradcheck(ragged: Ragged | None) -> None:
    shapes = ((1, 2, 3, 16), (1, 1, 4, 16)) if ragged is None else ((7, 2, 16), (11, 1, 16))
    q, dq = (torch.randn(shapes[0], dtype=torch.float64, requires_grad=True) for _ in range(2))
    k, v, dk, dv = (torch.randn(shapes[1], dtype=torch.float64, requires_grad=True) for _ in range(4))

    def both(*operands: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return flash_attention_jvp(*operands, scale=0.3, ragged=ragged)[:2]

    assert torch.autograd.gradcheck(both, (q, k, v, dq, dk, dv), fast_mode=True)


def test_torch_compile_traces_without_a_break(inputs: Inputs) -> None:
    x, tangent, weights = inputs
    compiled = torch.compile(lambda x: transformer(ours, x, weights), backend="aot_eager", fullgraph=True)
    assert_close(compiled(x), transformer(plain, x, weights), 1e-12)
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(compiled(leaf).sin().sum(), leaf)
    (expected,) = torch.autograd.grad(transformer(plain, leaf, weights).sin().sum(), leaf)
    assert_close(found, expected, 1e-12)
    both = torch.compile(
        lambda x, t: torch.func.jvp(lambda x: transformer(ours, x, weights), (x,), (t,)), backend="aot_eager"
    )
    _, expected = torch.func.jvp(lambda x: transformer(plain, x, weights), (x,), (tangent,))
    assert_close(both(x, tangent)[1], expected, 1e-12)


@pytest.mark.parametrize("ragged", [False, True])
def test_the_custom_ops_keep_torchs_contract(ragged: bool) -> None:
    """opcheck compares each op with its fake: shapes, dtypes, strides, and what aliases what."""
    layout = (None, None, 0, 0)
    shape = (1, 2, 6, 16)
    if ragged:
        lengths = Ragged.from_lengths([4, 2])
        layout, shape = (lengths.q_offsets, lengths.k_offsets, 4, 4), (6, 2, 16)
    q, k, v, dq = (torch.randn(shape, requires_grad=True) for _ in range(4))
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(torch.ops.headway.flash_attention, (q, k, v, *layout, True, 0.25), test_utils=tests)
    torch.library.opcheck(
        torch.ops.headway.flash_attention_jvp, (q, k, v, dq, None, None, *layout, True, 0.25), test_utils=tests
    )


def test_the_paged_op_is_traced_too() -> None:
    batch = PagedBatch.build([[1, 0], [2]], [20, 3], block_size=16, cache_blocks=3)
    q, cache = torch.randn(2, 2, 16), torch.randn(3, 16, 1, 16)
    compiled = torch.compile(lambda q: paged_attention(q, cache, cache, batch), backend="aot_eager", fullgraph=True)
    assert_close(compiled(q), paged_attention(q, cache, cache, batch), 1e-6)
    flat = (batch.block_tables, batch.k_lengths, batch.q_offsets, 1, 20, 0.25)
    torch.library.opcheck(
        torch.ops.headway.paged_attention,
        (q, cache, cache, None, None, *flat),
        test_utils=("test_schema", "test_faketensor"),
    )
