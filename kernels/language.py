"""What the Triton kernels share. Imported only where a kernel is about to run."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.runtime import interpreting

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)

# The interpreter multiplies bfloat16 as if its bits were integers (triton issue 11584), so there products of exact
# float32 copies stand in: the same numbers that tensor cores form from bfloat16 operands.
UPCAST: tl.constexpr = tl.constexpr(interpreting())


@triton.jit
def dot(a, b, acc=None):
    """a @ b (+ acc), accumulated in float32 (float64 for float64); float32 is exact (IEEE), never TF32."""
    if UPCAST and a.dtype == tl.bfloat16:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def load_tile(base, first, rows, columns, stride, tokens, head_dim, MASK: tl.constexpr, EVEN_D: tl.constexpr):
    """Rows first + rows of a [tokens, head_dim] matrix; zero past its ends where masked."""
    at = base + tl.cast(first, tl.int64) * stride + rows[:, None] * stride + columns[None, :]
    if MASK and EVEN_D:
        return tl.load(at, mask=(first + rows < tokens)[:, None], other=0.0)
    elif MASK:
        return tl.load(at, mask=(first + rows < tokens)[:, None] & (columns < head_dim)[None, :], other=0.0)
    elif EVEN_D:
        return tl.load(at)
    else:
        return tl.load(at, mask=(columns < head_dim)[None, :], other=0.0)


@triton.jit
def store_tile(base, first, rows, columns, stride, tokens, head_dim, tile):
    """Write the rows that exist, rounded to the output's type."""
    at = base + tl.cast(first, tl.int64) * stride + rows[:, None] * stride + columns[None, :]
    tl.store(at, tile.to(base.dtype.element_ty), mask=(first + rows < tokens)[:, None] & (columns < head_dim)[None, :])


@triton.jit
def sequence_span(offsets, sequence, tokens, RAGGED: tl.constexpr):
    """First token and length of one sequence: from the cumulative lengths, or the dense length."""
    if RAGGED:
        start = tl.load(offsets + sequence)
        return start.to(tl.int64), tl.load(offsets + sequence + 1) - start
    else:
        return tl.full([], 0, tl.int64), tokens


@triton.jit
def key_range(first_query, q_tokens, k_tokens, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr):
    """(end of the key blocks that need no mask, end of the keys that any query of the tile sees)."""
    if CAUSAL:
        shift = k_tokens - q_tokens
        last = tl.minimum(tl.maximum(first_query + BLOCK_M + shift, 0), k_tokens)
        seen_by_all = tl.minimum(tl.maximum(first_query + 1 + shift, 0), k_tokens)
        return seen_by_all // BLOCK_N * BLOCK_N, last
    else:
        return k_tokens // BLOCK_N * BLOCK_N, k_tokens


def token_strides(tensor: torch.Tensor) -> tuple[int, int, int]:
    """Strides by (sequence, head, token): dense [batch, heads, tokens, ...], ragged [tokens, heads, ...]."""
    if tensor.ndim == 4:
        return tensor.stride(0), tensor.stride(1), tensor.stride(2)
    return 0, tensor.stride(1), tensor.stride(0)


def row_strides(rows: torch.Tensor, ragged: bool) -> tuple[int, int, int]:
    """The same for per-row numbers: dense [batch, heads, tokens], ragged [heads, tokens]."""
    return (0, rows.stride(0), rows.stride(1)) if ragged else (rows.stride(0), rows.stride(1), rows.stride(2))


def row_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Type of LSE and of accumulation: float32, or float64 where the interpreter proves gradients in float64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def accumulator(tensor: torch.Tensor) -> tl.dtype:
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32
