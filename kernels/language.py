"""What the Triton kernels share. Imported only where a kernel is about to run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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
    if a.dtype == tl.float64:
        return tl.dot(a, b, acc, input_precision="ieee", out_dtype=tl.float64)
    else:
        return tl.dot(a, b, acc, input_precision="ieee", out_dtype=tl.float32)


@triton.jit
def load_tile(base, first, rows, columns, stride, tokens, head_dim, MASK: tl.constexpr, EVEN_D: tl.constexpr):
    """Rows first + rows of a [tokens, head_dim] matrix, by pointer; zero past its ends where masked."""
    at = (base + tl.cast(first, tl.int64) * stride) + (rows[:, None] * stride + columns[None, :])
    if MASK and EVEN_D:
        return tl.load(at, mask=(first + rows < tokens)[:, None], other=0.0)
    elif MASK:
        return tl.load(at, mask=(first + rows < tokens)[:, None] & (columns < head_dim)[None, :], other=0.0)
    elif EVEN_D:
        return tl.load(at)
    else:
        return tl.load(at, mask=(columns < head_dim)[None, :], other=0.0)


@triton.jit
def tile_source(base, tokens, head_dim, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TMA: tl.constexpr):
    """What `load_rows` reads a [tokens, head_dim] matrix from: a descriptor for the copy engine (TMA), or the pointer.

    The copy engine takes no registers for addresses and fills with zeros past the ends.
    """
    if TMA:
        return tl.make_tensor_descriptor(base, [tl.maximum(tokens, 1), head_dim], [stride, 1], [ROWS, COLUMNS])
    else:
        return base


@triton.jit
def load_rows(
    source, first, column, rows, columns, stride, tokens, head_dim,
    MASK: tl.constexpr, EVEN_D: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """The tile that starts at [first, column]; zero past the ends, for a pointer only where MASK."""
    if TMA:
        return source.load([first, column])
    else:
        return load_tile(source, first, rows, columns, stride, tokens, head_dim, MASK, EVEN_D)


@triton.jit
def resident_tile(
    base, first, rows, columns, stride, tokens, head_dim,
    EVEN_D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """A tile that a program reads once and keeps."""
    source = tile_source(base, tokens, head_dim, stride, ROWS, COLUMNS, TMA)
    return load_rows(source, first, 0, rows, columns, stride, tokens, head_dim, True, EVEN_D, TMA)


@triton.jit
def store_tile(base, first, rows, columns, stride, tokens, head_dim, tile):
    """Write the rows that exist, rounded to the output's type."""
    at = (base + tl.cast(first, tl.int64) * stride) + (rows[:, None] * stride + columns[None, :])
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


def copy_engine_reads(architecture: int, *tensors: torch.Tensor | None) -> bool:
    """Whether tiles of all these come through Hopper's copy engine: 16-byte bases and strides.

    Float32 goes by pointer: its products take operands from registers, and LLVM's vectoriser aborts on the mixture.
    """
    return architecture >= 90 and all(_aligned(tensor) for tensor in tensors if tensor is not None)


def _aligned(tensor: torch.Tensor) -> bool:
    outer = (stride * tensor.element_size() for stride in tensor.stride()[:-1])
    aligned = tensor.data_ptr() % 16 == 0 and all(stride % 16 == 0 for stride in outer)
    return aligned and tensor.dtype != torch.float32


@contextlib.contextmanager
def launching(tensor: torch.Tensor) -> Iterator[None]:
    """Launch on the tensor's device, with room for the descriptors that kernels build there."""
    if not tensor.is_cuda:
        yield
        return
    with torch.cuda.device(tensor.device):
        triton.set_allocator(lambda size, _align, _stream: torch.empty(size, dtype=torch.int8, device="cuda"))
        yield
