"""Attention and its tangent in one pass, in Triton. The names are the README's; arguments were checked by the op."""

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
    A, T, z, r, l, m, q, dq, K, V, dK, dV, start, end,
    stride_k, stride_v, visible_until, rows, keys, columns, slice_start, slice_columns, k_tokens, head_dim, scale,
    scale_log2,
    BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr, EVEN_D: tl.constexpr, TMA: tl.constexpr,
    HAS_DQ: tl.constexpr, HAS_DK: tl.constexpr, HAS_DV: tl.constexpr,
):  # fmt: skip
    """One stretch of keys folded into the state. All of it scales by the same a, tangent and primal.

    z and r sum the very numbers that the matrix unit multiplies, rounding and all,
    so that O = A/z and T/z - (r/z)O lose the
    error that both terms share; l sums the weights before they are rounded, for LSE.
    """
    for n in tl.range(start, end, BLOCK_N):
        k = load_rows(K, n, 0, keys, columns, stride_k, k_tokens, head_dim, MASKED, EVEN_D, TMA)  # [BLOCK_N, D]
        s = dot(q, tl.trans(k)) * scale_log2  # [BLOCK_M, BLOCK_N], in units of log 2
        if HAS_DQ:
            ds = dot(dq, tl.trans(k))  # the tangent of the scores, before the scale
        if HAS_DK:
            dk = load_rows(dK, n, 0, keys, columns, stride_k, k_tokens, head_dim, MASKED, EVEN_D, TMA)
            ds = dot(q, tl.trans(dk), ds) if HAS_DQ else dot(q, tl.trans(dk))
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
        m = m_new
        l = l * a + tl.sum(p, 1)
        v = load_rows(
            V, n, slice_start, keys, slice_columns, stride_v, k_tokens, head_dim, MASKED, EVEN_D, TMA
        )  # [BLOCK_N, SLICE]
        T = T * a[:, None]
        if HAS_DQ or HAS_DK:
            h = (p * (ds * scale)).to(v.dtype)
            r = r * a + tl.sum(h.to(r.dtype), 1)
            T = dot(h, v, T)
        if v.dtype.primitive_bitwidth == 16:
            p = p.to(v.dtype)
            z = z * a + tl.sum(p.to(z.dtype), 1)
        else:
            z = l  # nothing was rounded
        A = dot(p, v, A * a[:, None])
        if HAS_DV:
            dv = load_rows(dV, n, slice_start, keys, slice_columns, stride_v, k_tokens, head_dim, MASKED, EVEN_D, TMA)
            T = dot(p, dv, T)
    return A, T, z, r, l, m


@triton.jit
def forward_kernel(
    Q, K, V, dQ, dK, dV, O, dO, LSE, dLSE, q_offsets, k_offsets,
    stride_qb, stride_qh, stride_q, stride_kb, stride_kh, stride_k, stride_vb, stride_vh, stride_v,
    stride_ob, stride_oh, stride_o, stride_lb, stride_lh, stride_l,
    heads, group, q_tokens, k_tokens, head_dim, scale, scale_log2,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, SLICE: tl.constexpr, EVEN_D: tl.constexpr,
    CAUSAL: tl.constexpr, RAGGED: tl.constexpr, ACC: tl.constexpr,
    HAS_DQ: tl.constexpr, HAS_DK: tl.constexpr, HAS_DV: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """One program: SLICE output columns of one tile of queries of one head, over all keys that the tile sees."""
    slices: tl.constexpr = BLOCK_D // SLICE
    tiles = tl.cdiv(q_tokens, BLOCK_M)
    program = tl.program_id(0) // slices
    # Late tiles see the most keys under a causal mask: they start first, so that the short ones fill the end.
    first = (tiles - 1 - program % tiles) * BLOCK_M
    head = (program // tiles) % heads
    sequence = program // tiles // heads
    q_start, q_tokens = sequence_span(q_offsets, sequence, q_tokens, RAGGED)
    k_start, k_tokens = sequence_span(k_offsets, sequence, k_tokens, RAGGED)
    if first >= q_tokens:
        return
    sequence = sequence.to(tl.int64)
    kv_head = (head // group).to(tl.int64)
    head = head.to(tl.int64)
    Q += sequence * stride_qb + head * stride_qh + q_start * stride_q
    K += sequence * stride_kb + kv_head * stride_kh + k_start * stride_k
    V += sequence * stride_vb + kv_head * stride_vh + k_start * stride_v
    if HAS_DQ:
        dQ += sequence * stride_qb + head * stride_qh + q_start * stride_q
    if HAS_DK:
        dK += sequence * stride_kb + kv_head * stride_kh + k_start * stride_k
    if HAS_DV:
        dV += sequence * stride_vb + kv_head * stride_vh + k_start * stride_v
    output = sequence * stride_ob + head * stride_oh + q_start * stride_o
    row = sequence * stride_lb + head * stride_lh + q_start * stride_l

    rows, keys, columns = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    slice_start = (tl.program_id(0) % slices) * SLICE
    slice_columns = slice_start + tl.arange(0, SLICE)
    q = resident_tile(
        Q, first, rows, columns, stride_q, q_tokens, head_dim, EVEN_D, BLOCK_M, BLOCK_D, TMA
    )  # [BLOCK_M, D]
    if HAS_DQ:
        dq = resident_tile(dQ, first, rows, columns, stride_q, q_tokens, head_dim, EVEN_D, BLOCK_M, BLOCK_D, TMA)
    else:
        dq = q  # not read
    K = tile_source(K, k_tokens, head_dim, stride_k, BLOCK_N, BLOCK_D, TMA)
    V = tile_source(V, k_tokens, head_dim, stride_v, BLOCK_N, SLICE, TMA)
    if HAS_DK:
        dK = tile_source(dK, k_tokens, head_dim, stride_k, BLOCK_N, BLOCK_D, TMA)
    if HAS_DV:
        dV = tile_source(dV, k_tokens, head_dim, stride_v, BLOCK_N, SLICE, TMA)
    A = tl.zeros([BLOCK_M, SLICE], ACC)
    T = tl.zeros([BLOCK_M, SLICE], ACC)
    z = tl.zeros([BLOCK_M], ACC)
    r = tl.zeros([BLOCK_M], ACC)
    l = tl.zeros([BLOCK_M], ACC)
    m = tl.full([BLOCK_M], -float("inf"), ACC)
    visible_until = first + k_tokens - q_tokens
    whole, last = key_range(first, q_tokens, k_tokens, BLOCK_M, BLOCK_N, CAUSAL)
    A, T, z, r, l, m = attend_keys(
        A, T, z, r, l, m, q, dq, K, V, dK, dV, 0, whole, stride_k, stride_v, visible_until,
        rows, keys, columns, slice_start, slice_columns, k_tokens, head_dim, scale, scale_log2,
        BLOCK_N, CAUSAL, False, EVEN_D, TMA, HAS_DQ, HAS_DK, HAS_DV,
    )  # fmt: skip
    A, T, z, r, l, m = attend_keys(
        A, T, z, r, l, m, q, dq, K, V, dK, dV, whole, last, stride_k, stride_v, visible_until,
        rows, keys, columns, slice_start, slice_columns, k_tokens, head_dim, scale, scale_log2,
        BLOCK_N, CAUSAL, True, EVEN_D, TMA, HAS_DQ, HAS_DK, HAS_DV,
    )  # fmt: skip
    seen_any = l > 0.0  # a query that sees no key answers zero in both, with LSE = -inf and its tangent 0
    l = tl.where(seen_any, l, 1.0)
    z = tl.where(seen_any, z, 1.0)
    o = A / z[:, None]
    r = r / z
    store_tile(O + output, first, rows, slice_columns, stride_o, q_tokens, head_dim, o)
    store_tile(dO + output, first, rows, slice_columns, stride_o, q_tokens, head_dim, T / z[:, None] - r[:, None] * o)
    if tl.program_id(0) % slices == 0:
        exists = first + rows < q_tokens
        lse = tl.where(seen_any, (m + tl.log2(l)) * LN2, -float("inf"))
        tl.store(LSE + row + (first + rows) * stride_l, lse, mask=exists)
        tl.store(dLSE + row + (first + rows) * stride_l, r, mask=exists)


def like_primal(primal: torch.Tensor, tangent: torch.Tensor | None) -> torch.Tensor | None:
    """The tangent in its primal's strides, copied only where they differ: one set of offsets then serves both loads."""
    if tangent is None or tangent.stride() == primal.stride():
        return tangent
    return torch.empty_strided(primal.shape, primal.stride(), dtype=primal.dtype, device=primal.device).copy_(tangent)


def without_overlap(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of what was expanded (stride 0), so that a tangent in the same strides can be written."""
    return tensor.contiguous() if 0 in tensor.stride() else tensor


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dq: torch.Tensor | None,
    dk: torch.Tensor | None,
    dv: torch.Tensor | None,
    spec: Spec,
    tile: Tile | None = None,
    architecture: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(o, do, lse, dlse), rows of lse and dlse as in `flash_attention`. Launches on q's device; arguments checked."""
    q, k, v = (without_overlap(each) for each in (q, k, v))
    dq, dk, dv = (like_primal(*pair) for pair in ((q, dq), (k, dk), (v, dv)))
    ragged = spec.ragged
    heads, head_dim = q.shape[1], q.shape[-1]
    sequences, q_tokens, k_tokens = (
        (q.shape[0], q.shape[2], k.shape[2])
        if ragged is None
        else (ragged.sequences, ragged.max_q_tokens, ragged.max_k_tokens)
    )
    architecture = architecture or capability(q.device)
    tile = tile or lookup("flash_attention_jvp", head_dim, q.element_size() * 8, architecture)
    o, do = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(2))
    lse_shape = (sequences, heads, q_tokens) if ragged is None else (heads, q.shape[0])
    lse, dlse = (torch.empty(lse_shape, dtype=row_dtype(q), device=q.device) for _ in range(2))
    padded = padded_head_dim(head_dim)
    output_slice = min(padded, tile.output_slice)
    programs = triton.cdiv(q_tokens, tile.block_m) * heads * sequences * (padded // output_slice)
    if programs == 0:
        return o, do, lse, dlse
    with launching(q):
        forward_kernel[(programs,)](
            q, k, v, dq, dk, dv, o, do, lse, dlse,
            ragged.q_offsets if ragged else None, ragged.k_offsets if ragged else None,
            *token_strides(q), *token_strides(k), *token_strides(v),
            *token_strides(o), *row_strides(lse, ragged is not None),
            heads, heads // k.shape[1], q_tokens, k_tokens, head_dim, spec.scale, spec.scale / math.log(2),
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_D=padded, SLICE=output_slice,
            EVEN_D=padded == head_dim, CAUSAL=spec.causal, RAGGED=ragged is not None,
            ACC=accumulator(q), HAS_DQ=dq is not None, HAS_DK=dk is not None, HAS_DV=dv is not None,
            TMA=copy_engine_reads(architecture, q, k, v, dq, dk, dv),
            num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=True,
        )  # fmt: skip
    return o, do, lse, dlse
