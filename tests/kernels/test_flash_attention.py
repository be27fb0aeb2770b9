"""The forward kernel, interpreted, against plain attention in float64."""

from __future__ import annotations

import pytest
import torch
from plain_attention import TOLERANCE, assert_close, plain_attention, plain_ragged_attention

from kernels.flash_attention import flash_attention, reference
from kernels.ragged import Ragged, Spec
from kernels.tiles import Tile

HALF_DTYPES = [torch.float16, torch.bfloat16]
SMALL = Tile(16, 16, 4, 2)


def operands(
    shape_q: tuple[int, ...], shape_k: tuple[int, ...], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(shape_q).to(dtype), torch.randn(shape_k).to(dtype), torch.randn(shape_k).to(dtype)


def check_rows(lse: torch.Tensor, expected: torch.Tensor) -> None:
    alone = expected < -1e29
    assert torch.equal(lse == -torch.inf, alone)
    assert_close(lse.masked_fill(alone, 0), expected.masked_fill(alone, 0), 1e-5)


def kernel(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: Spec, tile: Tile, architecture: int
) -> tuple[torch.Tensor, torch.Tensor]:
    from kernels.flash_attention import triton

    return triton.forward(q, k, v, spec, tile, architecture)


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("q_tokens", "k_tokens"), [(1, 1), (33, 33), (7, 50), (50, 7)])
@pytest.mark.usefixtures("interpreter")
def test_masks_and_lengths_in_float64(q_tokens: int, k_tokens: int, causal: bool, architecture: int) -> None:
    q, k, v = operands((2, 2, q_tokens, 24), (2, 1, k_tokens, 24), torch.float64)
    o, lse = kernel(q, k, v, Spec(causal, 0.2, None), SMALL, architecture)
    expected, rows = plain_attention(q, k, v, causal, 0.2)
    assert_close(o, expected, TOLERANCE[torch.float64])
    check_rows(lse, rows)


@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("head_dim", [16, 40, 64, 128, 256])
@pytest.mark.usefixtures("interpreter")
def test_head_dims_in_half_precision(head_dim: int, dtype: torch.dtype) -> None:
    q, k, v = operands((1, 2, 19, head_dim), (1, 2, 37, head_dim), dtype)
    o, _ = kernel(q, k, v, Spec(True, head_dim**-0.5, None), SMALL, 90)
    expected, _ = plain_attention(q.double(), k.double(), v.double(), True, head_dim**-0.5)
    assert_close(o, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.usefixtures("interpreter")
def test_ragged_batches_with_empty_sequences_and_grouped_heads(causal: bool, architecture: int) -> None:
    ragged = Ragged.from_lengths([5, 0, 1, 20, 3], [7, 3, 0, 19, 40])
    q, k, v = operands((29, 6, 32), (69, 2, 32), torch.float64)
    o, lse = kernel(q, k, v, Spec(causal, 0.3, ragged), SMALL, architecture)
    expected, rows = plain_ragged_attention(q, k, v, causal, 0.3, ragged)
    assert_close(o, expected, TOLERANCE[torch.float64])
    check_rows(lse, rows)


@pytest.mark.usefixtures("interpreter")
def test_a_neighbour_full_of_nan_does_not_leak() -> None:
    ragged = Ragged.from_lengths([5, 9])
    q, k, v = operands((14, 1, 16), (14, 1, 16), torch.float32)
    clean, _ = kernel(q, k, v, Spec(False, 0.25, ragged), SMALL, 90)
    for each in (q, k, v):
        each[5:] = torch.nan
    for architecture in (80, 90):
        o, _ = kernel(q, k, v, Spec(False, 0.25, ragged), SMALL, architecture)
        assert torch.equal(o[:5], clean[:5])


@pytest.mark.usefixtures("interpreter")
def test_the_public_function_runs_the_kernel_with_its_table_on_strided_inputs() -> None:
    packed = torch.randn(2, 9, 3, 2, 32)  # [batch, tokens, qkv, heads, head_dim]
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    o, lse = flash_attention(q, k, v, causal=True, return_lse=True)
    expected, rows = plain_attention(q.double(), k.double(), v.double(), True, 32**-0.5)
    assert o.is_contiguous() and o.dtype == torch.float32
    assert_close(o, expected, TOLERANCE[torch.float32])
    check_rows(lse, rows)


@pytest.mark.parametrize("causal", [False, True])
def test_the_reference_agrees_with_plain_attention(causal: bool) -> None:
    ragged = Ragged.from_lengths([5, 0, 1, 20], [7, 3, 0, 19])
    q, k, v = operands((26, 4, 16), (29, 2, 16), torch.float64)
    o, lse = reference.forward(q, k, v, Spec(causal, 0.3, ragged))
    expected, rows = plain_ragged_attention(q, k, v, causal, 0.3, ragged)
    assert_close(o, expected, TOLERANCE[torch.float64])
    check_rows(lse, rows)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [*HALF_DTYPES, torch.float32])
@pytest.mark.parametrize("head_dim", [16, 24, 32, 48, 64, 80, 96, 128, 160, 256])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.usefixtures("interpreter")
def test_every_head_dim_with_the_tables_tile(
    head_dim: int, dtype: torch.dtype, causal: bool, architecture: int
) -> None:
    from kernels.flash_attention import triton

    q, k, v = operands((1, 4, 130, head_dim), (1, 2, 161, head_dim), dtype)
    o, _ = triton.forward(q, k, v, Spec(causal, head_dim**-0.5, None), architecture=architecture)
    expected, _ = plain_attention(q.double(), k.double(), v.double(), causal, head_dim**-0.5)
    assert_close(o, expected, TOLERANCE[dtype])
