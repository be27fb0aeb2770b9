"""Flash attention forward in Triton. The names are the README's; the launcher assumes arguments that were checked."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from kernels.language import (
    LN2,
    accumulator,
    copy_engine_reads,
    dot,
    key_range,
    launching,
    load_rows,
    resident_tile,
    row_dtype,
    row_strides,
    sequence_span,
    store_tile,
    tile_source,
    token_strides,
)
from kernels.ragged import Spec
from kernels.runtime import capability
from kernels.tiles import Tile, lookup, padded_head_dim


@triton.jit
def attend_keys(
    acc, l, m, q, K, V, start, end, stride_k, stride_v, visible_until, rows, keys, columns, k_tokens, head_dim,
    scale_log2,
    BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr, EVEN_D: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """One stretch of keys folded into (acc, l, m). MASKED stretches hold the diagonal or the end of the keys."""
    for n in tl.range(start, end, BLOCK_N):
        k = load_rows(K, n, 0, keys, columns, stride_k, k_tokens, head_dim, MASKED, EVEN_D, TMA)  # [BLOCK_N, D]
        s = dot(q, tl.trans(k)) * scale_log2  # [BLOCK_M, BLOCK_N], in units of log 2
        if MASKED:
            seen = (n + keys < k_tokens)[None, :]
            if CAUSAL:
                seen = seen & (n + keys[None, :] <= visible_until + rows[:, None])
            s = tl.where(seen, s, -float("inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        # A row that has seen no key yet keeps m = -inf; zero stands in, so that no inf - inf makes a NaN.
        m_used = tl.where(m_new == -float("inf"), 0.0, m_new) if MASKED else m_new
        p = tl.exp2(s - m_used[:, None])
        a = tl.exp2(m - m_used)
        l = l * a + tl.sum(p, 1)
        v = load_rows(V, n, 0, keys, columns, stride_v, k_tokens, head_dim, MASKED, EVEN_D, TMA)  # [BLOCK_N, D]
        acc = dot(p.to(v.dtype), v, acc * a[:, None])
        m = m_new
    return acc, l, m


@triton.jit
def forward_kernel(
    Q, K, V, O, LSE, q_offsets, k_offsets,
    stride_qb, stride_qh, stride_q, stride_kb, stride_kh, stride_k, stride_vb, stride_vh, stride_v,
    stride_ob, stride_oh, stride_o, stride_lb, stride_lh, stride_l,
    heads, group, q_tokens, k_tokens, head_dim, scale_log2,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
    CAUSAL: tl.constexpr, RAGGED: tl.constexpr, ACC: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """One program: one tile of queries of one head of one sequence, over all keys that it sees."""
    tiles = tl.cdiv(q_tokens, BLOCK_M)
    # Late tiles see the most keys under a causal mask: they start first, so that the short ones fill the end.
    first = (tiles - 1 - tl.program_id(0) % tiles) * BLOCK_M
    head = (tl.program_id(0) // tiles) % heads
    sequence = tl.program_id(0) // tiles // heads
    q_start, q_tokens = sequence_span(q_offsets, sequence, q_tokens, RAGGED)
    k_start, k_tokens = sequence_span(k_offsets, sequence, k_tokens, RAGGED)
    if first >= q_tokens:
        return
    sequence = sequence.to(tl.int64)
    Q += sequence * stride_qb + head.to(tl.int64) * stride_qh + q_start * stride_q
    K += sequence * stride_kb + (head // group).to(tl.int64) * stride_kh + k_start * stride_k
    V += sequence * stride_vb + (head // group).to(tl.int64) * stride_vh + k_start * stride_v
    O += sequence * stride_ob + head.to(tl.int64) * stride_oh + q_start * stride_o
    LSE += sequence * stride_lb + head.to(tl.int64) * stride_lh + q_start * stride_l

    rows, keys, columns = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    q = resident_tile(
        Q, first, rows, columns, stride_q, q_tokens, head_dim, EVEN_D, BLOCK_M, BLOCK_D, TMA
    )  # [BLOCK_M, D]
    K = tile_source(K, k_tokens, head_dim, stride_k, BLOCK_N, BLOCK_D, TMA)
    V = tile_source(V, k_tokens, head_dim, stride_v, BLOCK_N, BLOCK_D, TMA)
    acc = tl.zeros([BLOCK_M, BLOCK_D], ACC)
    l = tl.zeros([BLOCK_M], ACC)
    m = tl.full([BLOCK_M], -float("inf"), ACC)
    visible_until = first + k_tokens - q_tokens
    whole, last = key_range(first, q_tokens, k_tokens, BLOCK_M, BLOCK_N, CAUSAL)
    acc, l, m = attend_keys(
        acc, l, m, q, K, V, 0, whole, stride_k, stride_v, visible_until, rows, keys, columns, k_tokens, head_dim,
        scale_log2, BLOCK_N, CAUSAL, False, EVEN_D, TMA,
    )  # fmt: skip
    acc, l, m = attend_keys(
        acc, l, m, q, K, V, whole, last, stride_k, stride_v, visible_until, rows, keys, columns, k_tokens, head_dim,
        scale_log2, BLOCK_N, CAUSAL, True, EVEN_D, TMA,
    )  # fmt: skip
    seen_any = l > 0.0  # a query that sees no key answers zero, with LSE = -inf
    o = acc / tl.where(seen_any, l, 1.0)[:, None]
    store_tile(O, first, rows, columns, stride_o, q_tokens, head_dim, o)
    lse = tl.where(seen_any, (m + tl.log2(tl.where(seen_any, l, 1.0))) * LN2, -float("inf"))
    tl.store(LSE + (first + rows) * stride_l, lse, mask=first + rows < q_tokens)


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spec: Spec,
    tile: Tile | None = None,
    architecture: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(o like q, lse [batch, heads, tokens] or [heads, tokens]). Launches on q's device; arguments were checked."""
    ragged = spec.ragged
    heads, head_dim = q.shape[1], q.shape[-1]
    sequences, q_tokens, k_tokens = (
        (q.shape[0], q.shape[2], k.shape[2])
        if ragged is None
        else (ragged.sequences, ragged.max_q_tokens, ragged.max_k_tokens)
    )
    architecture = architecture or capability(q.device)
    tile = tile or lookup("flash_attention", head_dim, q.element_size() * 8, architecture)
    o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse_shape = (sequences, heads, q_tokens) if ragged is None else (heads, q.shape[0])
    lse = torch.empty(lse_shape, dtype=row_dtype(q), device=q.device)
    programs = triton.cdiv(q_tokens, tile.block_m) * heads * sequences
    if programs == 0:
        return o, lse
    with launching(q):
        forward_kernel[(programs,)](
            q, k, v, o, lse,
            ragged.q_offsets if ragged else None, ragged.k_offsets if ragged else None,
            *token_strides(q), *token_strides(k), *token_strides(v), *token_strides(o),
            *row_strides(lse, ragged is not None),
            heads, heads // k.shape[1], q_tokens, k_tokens, head_dim, spec.scale / math.log(2),
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_D=padded_head_dim(head_dim),
            EVEN_D=padded_head_dim(head_dim) == head_dim, CAUSAL=spec.causal, RAGGED=ragged is not None,
            ACC=accumulator(q), TMA=copy_engine_reads(architecture, q, k, v), num_warps=tile.num_warps,
            num_stages=tile.num_stages, enable_fp_fusion=True,
        )  # fmt: skip
    return o, lse
