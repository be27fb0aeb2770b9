"""The tangent kernel and its backward, interpreted, against torch.func.jvp and autograd in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from plain_attention import TOLERANCE, assert_close, plain_attention, plain_ragged_attention

from kernels.flash_attention_jvp import flash_attention_jvp, reference
from kernels.flash_attention_jvp.op import AttentionJvp
from kernels.ragged import Ragged, Spec
from kernels.tiles import Tile

# torch.func.jvp imports a part of torch that warns about itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

HALF_DTYPES = [torch.float16, torch.bfloat16]
# Slices of the output and passes over the gradients are on, so that small sizes reach that code too.
FORWARD_TILE = Tile(16, 16, 4, 2, 1, 32)
QUERY_TILE, KEY_TILE = Tile(16, 32, 4, 1, 2, 32), Tile(32, 16, 4, 1, 3, 16)
WIDE_QUERY_TILE, WIDE_KEY_TILE = Tile(32, 64, 4, 1, 2, 128), Tile(32, 64, 4, 1, 3, 128)
ALL, ONLY_Q = (True, True, True), (True, False, False)
Tensors = list[torch.Tensor | None]


def operands(
    q_shape: tuple[int, ...], k_shape: tuple[int, ...], dtype: torch.dtype, tangents: tuple[bool, bool, bool] = ALL
) -> Tensors:
    shapes = (q_shape, k_shape, k_shape)
    primals = [torch.randn(shape).to(dtype) for shape in shapes]
    return [
        *primals,
        *(torch.randn(s).to(dtype) if wanted else None for s, wanted in zip(shapes, tangents, strict=True)),
    ]


def truth(x: Tensors, spec: Spec) -> Callable[..., tuple[torch.Tensor, ...]]:
    """(o, do, lse, dlse) of q, k, v, dq, dk, dv by torch.func.jvp through plain attention."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if spec.ragged is None:
            return plain_attention(q, k, v, spec.causal, spec.scale)
        return plain_ragged_attention(q, k, v, spec.causal, spec.scale, spec.ragged)

    def both(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *tangents: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (o, lse), (do, dlse) = torch.func.jvp(attend, (q, k, v), tangents)
        return o, do, lse, dlse

    return both


def in_float64(x: Tensors) -> list[torch.Tensor]:
    primals = [each.double() for each in x[:3] if each is not None]
    tangents = [torch.zeros_like(p) if t is None else t.double() for p, t in zip(primals, x[3:], strict=True)]
    return [*primals, *tangents]


def check_forward(
    x: Tensors, spec: Spec, tolerance: float, tile: Tile | None = FORWARD_TILE, architecture: int = 90
) -> None:
    from kernels.flash_attention_jvp import triton

    o, do, lse, dlse = triton.forward(*x, spec, tile, architecture)
    expected = truth(x, spec)(*in_float64(x))
    assert_close(o, expected[0], tolerance)
    assert_close(do, expected[1], 2 * tolerance)
    alone = expected[2] < -1e29
    assert torch.equal(lse == -torch.inf, alone)
    assert_close(lse.masked_fill(alone, 0), expected[2].masked_fill(alone, 0), 1e-5)
    assert_close(dlse, expected[3].masked_fill(alone, 0), 2 * tolerance)


def check_backward(x: Tensors, spec: Spec, tolerance: float, architecture: int = 90) -> None:
    """Random weights on all four results; rows that see no key have no lse to weigh."""
    from kernels.flash_attention_jvp import triton, triton_backward

    wide = [each.requires_grad_() for each in in_float64(x)]
    results = truth(x, spec)(*wide)
    alone = results[2] < -1e29
    weights = [torch.randn(each.shape, dtype=torch.float64) for each in results]
    weights = [w.masked_fill(alone, 0) if w.shape == alone.shape else w.to(x[0].dtype).double() for w in weights]
    expected = torch.autograd.grad(results, wide, weights)
    o, do, lse, dlse = triton.forward(*x, spec, FORWARD_TILE, architecture)
    given = [w.to(like.dtype) for w, like in zip(weights, (o, do, lse, dlse), strict=True)]
    tiles = (QUERY_TILE, KEY_TILE) if x[0].shape[-1] < 128 else (WIDE_QUERY_TILE, WIDE_KEY_TILE)
    found = triton_backward.backward(*x, o, do, lse, dlse, *given, spec, *tiles, architecture)
    for gradient, want, operand in zip(found, expected, x, strict=True):
        if operand is None:
            assert gradient is None
        else:
            assert_close(gradient, want, tolerance)


CHECKS = [check_forward, check_backward]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("q_tokens", "k_tokens", "architecture"), [(1, 1, 90), (33, 33, 90), (7, 40, 80), (40, 7, 90)])
@pytest.mark.usefixtures("interpreter")
def test_masks_and_lengths_in_float64(
    check: Callable[..., None], q_tokens: int, k_tokens: int, causal: bool, architecture: int
) -> None:
    x = operands((1, 2, q_tokens, 40), (1, 1, k_tokens, 40), torch.float64)
    check(x, Spec(causal, 0.2, None), TOLERANCE[torch.float64], architecture=architecture)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    "tangents", [ALL, ONLY_Q, (False, True, False), (False, False, True), (True, True, False), (True, False, True)]
)
@pytest.mark.usefixtures("interpreter")
def test_tangents_may_be_absent_in_ragged_batches(
    check: Callable[..., None], tangents: tuple[bool, bool, bool]
) -> None:
    ragged = Ragged.from_lengths([5, 0, 1, 20], [7, 3, 0, 19])
    x = operands((26, 4, 32), (29, 2, 32), torch.float64, tangents)
    check(x, Spec(True, 0.3, ragged), TOLERANCE[torch.float64])


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("head_dim", [16, 64, 256])
@pytest.mark.usefixtures("interpreter")
def test_half_precision(check: Callable[..., None], head_dim: int, dtype: torch.dtype) -> None:
    x = operands((1, 2, 19, head_dim), (1, 1, 35, head_dim), dtype)
    check(x, Spec(True, head_dim**-0.5, None), 2 * TOLERANCE[dtype])


@pytest.mark.usefixtures("interpreter")
def test_the_row_sum_of_the_rounded_product_makes_the_tangent_more_exact() -> None:
    """With values of a large mean the tangent is a small difference of large sums, and their rounding must cancel."""
    from kernels.flash_attention_jvp import triton

    q, k, v, dq, dk, _ = operands((1, 1, 64, 64), (1, 1, 64, 64), torch.bfloat16)
    v = v + 16
    spec = Spec(False, 0.25, None)
    x = [q, k, v, dq, dk, None]
    _, do, _, _ = triton.forward(*x, spec, FORWARD_TILE)
    exact = truth(x, spec)(*in_float64(x))[1]
    # What a kernel would give that rounds the product for the matrix unit but sums it before.
    q64, k64, v64, dq64, dk64, _ = in_float64(x)
    p = (0.25 * q64 @ k64.mT).softmax(-1)
    h = p * 0.25 * (dq64 @ k64.mT + q64 @ dk64.mT)
    unrounded_sum = h.bfloat16().double() @ v64 - h.sum(-1, keepdim=True) * (p @ v64)
    assert (do.double() - exact).norm() < 0.5 * (unrounded_sum - exact).norm()


@pytest.mark.usefixtures("interpreter")
def test_gradcheck_of_the_kernels() -> None:
    x = [each.requires_grad_() for each in in_float64(operands((3, 2, 16), (4, 1, 16), torch.float64))]
    spec = Spec(True, 0.3, Ragged.from_lengths([3], [4]))
    probe = torch.randn(3, 2, 16, dtype=torch.float64)

    def loss(*operands: torch.Tensor) -> torch.Tensor:
        o, do, lse, dlse = AttentionJvp.apply(*operands, spec)
        return ((o + do.sin()) * probe).sum() + lse.sin().sum() + dlse.square().sum()

    assert torch.autograd.gradcheck(loss, x, fast_mode=True)


@pytest.mark.usefixtures("interpreter")
def test_expanded_and_mismatched_strides() -> None:
    q, k, v, dq, dk, dv = operands((1, 2, 9, 16), (1, 2, 9, 16), torch.float64)
    strange = dq.transpose(1, 2).contiguous().transpose(1, 2)
    once = dk[:, :1].expand(1, 2, 9, 16)
    actual = flash_attention_jvp(q, k[:, :1].expand(1, 2, 9, 16), v, strange, once, dv)
    expected = flash_attention_jvp(q, k[:, :1].repeat(1, 2, 1, 1), v, dq, once.contiguous(), dv)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("causal", [False, True])
def test_the_reference_agrees_with_torch_func_and_autograd(causal: bool) -> None:
    torch.manual_seed(0)
    spec = Spec(causal, 0.3, Ragged.from_lengths([5, 0, 1, 6], [7, 3, 0, 4]))
    x = [each.requires_grad_() for each in in_float64(operands((12, 4, 16), (14, 2, 16), torch.float64))]
    expected = truth(x, spec)(*x)
    alone = expected[2] < -1e29
    found = reference.forward(*x, spec)
    for index in (0, 1, 3):
        assert_close(found[index].detach(), expected[index].detach(), 1e-12)
    weights = [torch.randn(each.shape, dtype=torch.float64) for each in expected]
    weights = [w.masked_fill(alone, 0) if w.shape == alone.shape else w for w in weights]
    gradients = reference.backward(*(each.detach() for each in x), *weights, spec)
    for gradient, want in zip(gradients, torch.autograd.grad(expected, x, weights), strict=True):
        assert_close(gradient, want, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("head_dim", [16, 24, 32, 48, 64, 80, 96, 128, 160, 256])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tangents", [ALL, ONLY_Q])
@pytest.mark.usefixtures("interpreter")
def test_every_head_dim(
    check: Callable[..., None], head_dim: int, dtype: torch.dtype, causal: bool, tangents: tuple[bool, bool, bool]
) -> None:
    x = operands((1, 4, 50, head_dim), (1, 2, 67, head_dim), dtype, tangents)
    check(x, Spec(causal, head_dim**-0.5, None), 2 * TOLERANCE[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.usefixtures("interpreter")
def test_the_tables_tiles(head_dim: int, architecture: int) -> None:
    x = operands((1, 2, 150, head_dim), (1, 1, 170, head_dim), torch.float16)
    check_forward(x, Spec(True, head_dim**-0.5, None), 2 * TOLERANCE[torch.float16], None, architecture)
