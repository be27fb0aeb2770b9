"""Gradients through attention and its tangent, in Triton, without a score matrix. Names as the README's.

Three kernels: per-row numbers; the key side (a program owns a tile of keys and walks the queries that see it); the
query side (a program owns a tile of queries and walks the keys). No atomics: the result does not depend on timing.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from kernels.flash_attention_jvp.triton import like_primal, without_overlap
from kernels.language import (
    LOG2E,
    accumulator,
    copy_engine_reads,
    dot,
    key_range,
    launching,
    load_rows,
    load_tile,
    resident_tile,
    row_strides,
    sequence_span,
    store_tile,
    tile_source,
    token_strides,
)
from kernels.ragged import Spec
from kernels.runtime import capability
from kernels.tiles import Tile, lookup, padded_head_dim

ROWS_PER_PROGRAM = 64
# Which gradients each launch computes, by the number of passes: wide heads leave no registers for all at once.
KEY_PASSES = {1: (("k", "dk", "v", "dv"),), 2: (("k", "dk"), ("v", "dv")), 3: (("k",), ("dk", "dv"), ("v",))}
QUERY_PASSES = {1: (("q", "dq"),), 2: (("q",), ("dq",))}


@triton.jit
def row_kernel(
    O, dO, A, B, G_LSE, G_DLSE, DELTA, OMEGA,
    stride_ob, stride_oh, stride_o, stride_ab, stride_ah, stride_a,
    stride_lb, stride_lh, stride_l, stride_gb, stride_gh, stride_g, stride_tb, stride_th, stride_t,
    heads, tokens, head_dim,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, TANGENT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """delta = a·O + b·dO - gLSE and omega = b·O - gdLSE, each a number per query. Ragged rows need no offsets here."""
    tiles = tl.cdiv(tokens, BLOCK_M)
    first = (tl.program_id(0) % tiles) * BLOCK_M
    head = ((tl.program_id(0) // tiles) % heads).to(tl.int64)
    sequence = (tl.program_id(0) // tiles // heads).to(tl.int64)
    rows, columns = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    output = sequence * stride_ob + head * stride_oh
    o = load_tile(O + output, first, rows, columns, stride_o, tokens, head_dim, True, False).to(ACC)
    A += sequence * stride_ab + head * stride_ah
    a = load_tile(A, first, rows, columns, stride_a, tokens, head_dim, True, False).to(ACC)
    exists = first + rows < tokens
    delta = tl.sum(a * o, 1)
    if G_LSE is not None:
        at = G_LSE + sequence * stride_gb + head * stride_gh + (first + rows) * stride_g
        delta -= tl.load(at, mask=exists, other=0.0)
    row = sequence * stride_lb + head * stride_lh + (first + rows) * stride_l
    if TANGENT:
        do = load_tile(dO + output, first, rows, columns, stride_o, tokens, head_dim, True, False).to(ACC)
        B += sequence * stride_ab + head * stride_ah
        b = load_tile(B, first, rows, columns, stride_a, tokens, head_dim, True, False).to(ACC)
        delta += tl.sum(b * do, 1)
        omega = tl.sum(b * o, 1)
        if G_DLSE is not None:
            at = G_DLSE + sequence * stride_tb + head * stride_th + (first + rows) * stride_t
            omega -= tl.load(at, mask=exists, other=0.0)
        tl.store(OMEGA + row, omega, mask=exists)
    tl.store(DELTA + row, delta, mask=exists)


@triton.jit
def walk_queries(
    gk, gv, gdk, gdv, k, v, dk, dv, Q_at, dQ_at, A_at, B_at, LSE, R, DELTA, OMEGA, start,
    stride_q, stride_a, stride_l, seen_from, rows, keys, columns, slice_start, slice_columns, q_tokens, head_dim,
    scale, scale_log2,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, SLICE: tl.constexpr, SLICED: tl.constexpr, CAUSAL: tl.constexpr,
    EVEN_D: tl.constexpr,
    TMA: tl.constexpr, TANGENT: tl.constexpr,
    HAS_DQ: tl.constexpr, HAS_DK: tl.constexpr, HAS_DV: tl.constexpr, GRAD_K: tl.constexpr, GRAD_V: tl.constexpr,
    GRAD_DK: tl.constexpr, GRAD_DV: tl.constexpr,
):  # fmt: skip
    """The queries of one head folded into the gradients of one tile of keys. Every score matrix is held transposed."""
    Q = tile_source(Q_at, q_tokens, head_dim, stride_q, BLOCK_M, BLOCK_D, TMA)
    A = tile_source(A_at, q_tokens, head_dim, stride_a, BLOCK_M, BLOCK_D, TMA)
    if HAS_DQ:
        dQ = tile_source(dQ_at, q_tokens, head_dim, stride_q, BLOCK_M, BLOCK_D, TMA)
    if TANGENT:
        B = tile_source(B_at, q_tokens, head_dim, stride_a, BLOCK_M, BLOCK_D, TMA)
    if SLICED:
        Q_SLICES = tile_source(Q_at, q_tokens, head_dim, stride_q, BLOCK_M, SLICE, TMA)
        A_SLICES = tile_source(A_at, q_tokens, head_dim, stride_a, BLOCK_M, SLICE, TMA)
        if HAS_DQ:
            dQ_SLICES = tile_source(dQ_at, q_tokens, head_dim, stride_q, BLOCK_M, SLICE, TMA)
        if TANGENT:
            B_SLICES = tile_source(B_at, q_tokens, head_dim, stride_a, BLOCK_M, SLICE, TMA)
    for i in tl.range(start, q_tokens, BLOCK_M):
        q = load_rows(Q, i, 0, rows, columns, stride_q, q_tokens, head_dim, True, EVEN_D, TMA)  # [BLOCK_M, D]
        if GRAD_K or GRAD_V:
            a = load_rows(A, i, 0, rows, columns, stride_a, q_tokens, head_dim, True, EVEN_D, TMA)
        exists = i + rows < q_tokens
        # Queries past the end get LSE = inf, hence p = 0: they add nothing.
        lse = tl.load(LSE + (i + rows) * stride_l, mask=exists, other=float("inf")) * LOG2E
        p = tl.exp2(dot(k, tl.trans(q)) * scale_log2 - lse[None, :])  # [BLOCK_N, BLOCK_M]
        if CAUSAL:
            p = tl.where(seen_from + keys[:, None] <= i + rows[None, :], p, 0.0)
        if TANGENT:
            b = load_rows(B, i, 0, rows, columns, stride_a, q_tokens, head_dim, True, EVEN_D, TMA)
        if HAS_DQ and (GRAD_K or GRAD_V):
            dq = load_rows(dQ, i, 0, rows, columns, stride_q, q_tokens, head_dim, True, EVEN_D, TMA)
        if (HAS_DQ or HAS_DK) and (GRAD_K or GRAD_V):
            if HAS_DQ:
                ds = dot(k, tl.trans(dq))
                if HAS_DK:
                    ds = dot(dk, tl.trans(q), ds)
            else:
                ds = dot(dk, tl.trans(q))
            r = tl.load(R + (i + rows) * stride_l, mask=exists, other=0.0)
            ds = ds * scale - r[None, :]
        if (HAS_DQ or HAS_DK) and (GRAD_K or GRAD_DK):
            omega = tl.load(OMEGA + (i + rows) * stride_l, mask=exists, other=0.0)
            e = dot(v, tl.trans(b)) - omega[None, :]
        if GRAD_V:
            a_slice = a
            if SLICED:
                a_slice = load_rows(
                    A_SLICES, i, slice_start, rows, slice_columns, stride_a, q_tokens, head_dim, True, EVEN_D, TMA
                )
            gv = dot(p.to(a.dtype), a_slice, gv)
        if TANGENT and (GRAD_V or GRAD_DV):
            b_slice = b
            if SLICED:
                b_slice = load_rows(
                    B_SLICES, i, slice_start, rows, slice_columns, stride_a, q_tokens, head_dim, True, EVEN_D, TMA
                )
            if GRAD_V and (HAS_DQ or HAS_DK):
                gv = dot((p * ds).to(b.dtype), b_slice, gv)
            if GRAD_DV:
                gdv = dot(p.to(b.dtype), b_slice, gdv)
        if GRAD_K or GRAD_DK:
            q_slice = q
            if SLICED:
                q_slice = load_rows(
                    Q_SLICES, i, slice_start, rows, slice_columns, stride_q, q_tokens, head_dim, True, EVEN_D, TMA
                )
            if HAS_DQ or HAS_DK:
                gds = (p * e).to(q.dtype)
            if GRAD_DK:
                gdk = dot(gds, q_slice, gdk)
        if GRAD_K:
            if HAS_DQ:
                dq_slice = dq
                if SLICED:
                    dq_slice = load_rows(
                        dQ_SLICES, i, slice_start, rows, slice_columns, stride_q, q_tokens, head_dim, True, EVEN_D, TMA
                    )
                gk = dot(gds, dq_slice, gk)
            delta = tl.load(DELTA + (i + rows) * stride_l, mask=exists, other=0.0)
            c = dot(v, tl.trans(a))
            if HAS_DV:
                c = dot(dv, tl.trans(b), c)
            c -= delta[None, :]
            if HAS_DQ or HAS_DK:
                c += ds * e
            gk = dot((p * c).to(q.dtype), q_slice, gk)
    return gk, gv, gdk, gdv


@triton.jit
def key_kernel(
    Q, K, V, dQ, dK, dV, A, B, LSE, R, DELTA, OMEGA, GK, GV, GDK, GDV, q_offsets, k_offsets,
    stride_qb, stride_qh, stride_q, stride_kb, stride_kh, stride_k, stride_vb, stride_vh, stride_v,
    stride_ab, stride_ah, stride_a, stride_lb, stride_lh, stride_l,
    stride_gb, stride_gh, stride_g, kv_heads, group, q_tokens, k_tokens, head_dim, scale, scale_log2,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, SLICE: tl.constexpr, EVEN_D: tl.constexpr,
    CAUSAL: tl.constexpr, RAGGED: tl.constexpr, ACC: tl.constexpr, TANGENT: tl.constexpr,
    HAS_DQ: tl.constexpr, HAS_DK: tl.constexpr, HAS_DV: tl.constexpr, GRAD_K: tl.constexpr, GRAD_V: tl.constexpr,
    GRAD_DK: tl.constexpr, GRAD_DV: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """One program: SLICE columns of one tile of keys of one key head, over the queries of every head that shares it."""
    slices: tl.constexpr = BLOCK_D // SLICE
    tiles = tl.cdiv(k_tokens, BLOCK_N)
    program = tl.program_id(0) // slices
    first = (program % tiles) * BLOCK_N  # early keys are seen by the most queries: they start first
    kv_head = ((program // tiles) % kv_heads).to(tl.int64)
    sequence = program // tiles // kv_heads
    q_start, q_tokens = sequence_span(q_offsets, sequence, q_tokens, RAGGED)
    k_start, k_tokens = sequence_span(k_offsets, sequence, k_tokens, RAGGED)
    if first >= k_tokens:
        return
    sequence = sequence.to(tl.int64)
    rows, keys, columns = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    slice_start = (tl.program_id(0) % slices) * SLICE
    slice_columns = slice_start + tl.arange(0, SLICE)
    K += sequence * stride_kb + kv_head * stride_kh + k_start * stride_k
    V += sequence * stride_vb + kv_head * stride_vh + k_start * stride_v
    k = resident_tile(
        K, first, keys, columns, stride_k, k_tokens, head_dim, EVEN_D, BLOCK_N, BLOCK_D, TMA
    )  # [BLOCK_N, D]
    v = resident_tile(V, first, keys, columns, stride_v, k_tokens, head_dim, EVEN_D, BLOCK_N, BLOCK_D, TMA)
    dk, dv = k, v  # not read unless they exist
    if HAS_DK:
        dK += sequence * stride_kb + kv_head * stride_kh + k_start * stride_k
        dk = resident_tile(dK, first, keys, columns, stride_k, k_tokens, head_dim, EVEN_D, BLOCK_N, BLOCK_D, TMA)
    if HAS_DV:
        dV += sequence * stride_vb + kv_head * stride_vh + k_start * stride_v
        dv = resident_tile(dV, first, keys, columns, stride_v, k_tokens, head_dim, EVEN_D, BLOCK_N, BLOCK_D, TMA)
    gk = tl.zeros([BLOCK_N, SLICE], ACC)
    gv = tl.zeros([BLOCK_N, SLICE], ACC)
    gdk = tl.zeros([BLOCK_N, SLICE], ACC)
    gdv = tl.zeros([BLOCK_N, SLICE], ACC)

    seen_from = first - (k_tokens - q_tokens)  # the first query that sees the tile's first key
    if CAUSAL:
        start = tl.maximum(seen_from, 0) // BLOCK_M * BLOCK_M
    else:
        start = 0
    for member in tl.range(0, group, num_stages=1):
        head = kv_head * group + member
        query, tangent = sequence * stride_qb + head * stride_qh + q_start * stride_q, 0
        if HAS_DQ:
            tangent = sequence * stride_qb + head * stride_qh + q_start * stride_q
        out = sequence * stride_ab + head * stride_ah + q_start * stride_a
        out_tangent = 0
        if TANGENT:
            out_tangent = sequence * stride_ab + head * stride_ah + q_start * stride_a
        row = sequence * stride_lb + head * stride_lh + q_start * stride_l
        gk, gv, gdk, gdv = walk_queries(
            gk, gv, gdk, gdv, k, v, dk, dv, Q + query, dQ + tangent if HAS_DQ else None, A + out,
            B + out_tangent if TANGENT else None, LSE + row, R + row, DELTA + row, OMEGA + row, start,
            stride_q, stride_a, stride_l, seen_from, rows, keys, columns, slice_start, slice_columns, q_tokens,
            head_dim, scale,
            scale_log2, BLOCK_M, BLOCK_D, SLICE, SLICE != BLOCK_D, CAUSAL, EVEN_D, TMA, TANGENT, HAS_DQ, HAS_DK,
            HAS_DV, GRAD_K, GRAD_V,
            GRAD_DK, GRAD_DV,
        )  # fmt: skip
    at = sequence * stride_gb + kv_head * stride_gh + k_start * stride_g
    if GRAD_K:
        store_tile(GK + at, first, keys, slice_columns, stride_g, k_tokens, head_dim, gk * scale)
    if GRAD_DK:
        store_tile(GDK + at, first, keys, slice_columns, stride_g, k_tokens, head_dim, gdk * scale)
    if GRAD_V:
        store_tile(GV + at, first, keys, slice_columns, stride_g, k_tokens, head_dim, gv)
    if GRAD_DV:
        store_tile(GDV + at, first, keys, slice_columns, stride_g, k_tokens, head_dim, gdv)


@triton.jit
def walk_keys(
    gq, gdq, q, dq, a, b, lse, r, delta, omega, K, V, dK, dV, K_at, dK_at, start, end,
    stride_k, stride_v, visible_until, rows, keys, columns, slice_start, slice_columns, k_tokens, head_dim, scale,
    scale_log2,
    BLOCK_N: tl.constexpr, SLICE: tl.constexpr, SLICED: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr,
    EVEN_D: tl.constexpr,
    TMA: tl.constexpr,
    HAS_DQ: tl.constexpr, HAS_DK: tl.constexpr, HAS_DV: tl.constexpr, GRAD_Q: tl.constexpr, GRAD_DQ: tl.constexpr,
):  # fmt: skip
    """One stretch of keys folded into the gradients of one tile of queries."""
    if SLICED:
        K_SLICES = tile_source(K_at, k_tokens, head_dim, stride_k, BLOCK_N, SLICE, TMA)
        if HAS_DK:
            dK_SLICES = tile_source(dK_at, k_tokens, head_dim, stride_k, BLOCK_N, SLICE, TMA)
    for n in tl.range(start, end, BLOCK_N):
        k = load_rows(K, n, 0, keys, columns, stride_k, k_tokens, head_dim, MASKED, EVEN_D, TMA)  # [BLOCK_N, D]
        p = tl.exp2(dot(q, tl.trans(k)) * scale_log2 - lse[:, None])  # [BLOCK_M, BLOCK_N]
        if MASKED:
            seen = (n + keys < k_tokens)[None, :]
            if CAUSAL:
                seen = seen & (n + keys[None, :] <= visible_until + rows[:, None])
            p = tl.where(seen, p, 0.0)
        v = load_rows(V, n, 0, keys, columns, stride_v, k_tokens, head_dim, MASKED, EVEN_D, TMA)
        k_slice = k
        if SLICED:
            k_slice = load_rows(
                K_SLICES, n, slice_start, keys, slice_columns, stride_k, k_tokens, head_dim, MASKED, EVEN_D, TMA
            )
        if HAS_DQ or HAS_DK:
            e = dot(b, tl.trans(v)) - omega[:, None]
            gds = (p * e).to(k.dtype)
        if GRAD_DQ:
            gdq = dot(gds, k_slice, gdq)
        if GRAD_Q:
            if HAS_DK:
                dk = load_rows(dK, n, 0, keys, columns, stride_k, k_tokens, head_dim, MASKED, EVEN_D, TMA)
                dk_slice = dk
                if SLICED:
                    dk_slice = load_rows(
                        dK_SLICES,
                        n,
                        slice_start,
                        keys,
                        slice_columns,
                        stride_k,
                        k_tokens,
                        head_dim,
                        MASKED,
                        EVEN_D,
                        TMA,
                    )
                gq = dot(gds, dk_slice, gq)
            c = dot(a, tl.trans(v))
            if HAS_DV:
                dv = load_rows(dV, n, 0, keys, columns, stride_v, k_tokens, head_dim, MASKED, EVEN_D, TMA)
                c = dot(b, tl.trans(dv), c)
            c -= delta[:, None]
            if HAS_DQ or HAS_DK:
                if HAS_DQ:
                    ds = dot(dq, tl.trans(k))
                    if HAS_DK:
                        ds = dot(q, tl.trans(dk), ds)
                else:
                    ds = dot(q, tl.trans(dk))
                c += (ds * scale - r[:, None]) * e
            gq = dot((p * c).to(k.dtype), k_slice, gq)
    return gq, gdq


@triton.jit
def query_kernel(
    Q, K, V, dQ, dK, dV, A, B, LSE, R, DELTA, OMEGA, GQ, GDQ, q_offsets, k_offsets,
    stride_qb, stride_qh, stride_q, stride_kb, stride_kh, stride_k, stride_vb, stride_vh, stride_v,
    stride_ab, stride_ah, stride_a, stride_lb, stride_lh, stride_l,
    stride_gb, stride_gh, stride_g, heads, group, q_tokens, k_tokens, head_dim, scale, scale_log2,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, SLICE: tl.constexpr, EVEN_D: tl.constexpr,
    CAUSAL: tl.constexpr, RAGGED: tl.constexpr, ACC: tl.constexpr, TANGENT: tl.constexpr,
    HAS_DQ: tl.constexpr, HAS_DK: tl.constexpr, HAS_DV: tl.constexpr, GRAD_Q: tl.constexpr, GRAD_DQ: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """One program: SLICE columns of one tile of queries of one head, over the keys that the tile sees."""
    slices: tl.constexpr = BLOCK_D // SLICE
    tiles = tl.cdiv(q_tokens, BLOCK_M)
    program = tl.program_id(0) // slices
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
    rows, keys, columns = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    slice_start = (tl.program_id(0) % slices) * SLICE
    slice_columns = slice_start + tl.arange(0, SLICE)
    K += sequence * stride_kb + kv_head * stride_kh + k_start * stride_k
    V += sequence * stride_vb + kv_head * stride_vh + k_start * stride_v
    if HAS_DK:
        dK += sequence * stride_kb + kv_head * stride_kh + k_start * stride_k
    if HAS_DV:
        dV += sequence * stride_vb + kv_head * stride_vh + k_start * stride_v
    Q += sequence * stride_qb + head * stride_qh + q_start * stride_q
    A += sequence * stride_ab + head * stride_ah + q_start * stride_a
    q = resident_tile(
        Q, first, rows, columns, stride_q, q_tokens, head_dim, EVEN_D, BLOCK_M, BLOCK_D, TMA
    )  # [BLOCK_M, D]
    a = resident_tile(A, first, rows, columns, stride_a, q_tokens, head_dim, EVEN_D, BLOCK_M, BLOCK_D, TMA)
    dq, b = q, a  # not read unless they exist
    if HAS_DQ:
        dQ += sequence * stride_qb + head * stride_qh + q_start * stride_q
        dq = resident_tile(dQ, first, rows, columns, stride_q, q_tokens, head_dim, EVEN_D, BLOCK_M, BLOCK_D, TMA)
    if TANGENT:
        B += sequence * stride_ab + head * stride_ah + q_start * stride_a
        b = resident_tile(B, first, rows, columns, stride_a, q_tokens, head_dim, EVEN_D, BLOCK_M, BLOCK_D, TMA)
    exists = first + rows < q_tokens
    row = sequence * stride_lb + head * stride_lh + (q_start + first + rows) * stride_l
    lse = tl.load(LSE + row, mask=exists, other=float("inf")) * LOG2E
    delta = tl.load(DELTA + row, mask=exists, other=0.0)
    r, omega = delta, delta  # not read unless scores have a tangent
    if HAS_DQ or HAS_DK:
        r = tl.load(R + row, mask=exists, other=0.0)
        omega = tl.load(OMEGA + row, mask=exists, other=0.0)
    k_tiles = tile_source(K, k_tokens, head_dim, stride_k, BLOCK_N, BLOCK_D, TMA)
    v_tiles = tile_source(V, k_tokens, head_dim, stride_v, BLOCK_N, BLOCK_D, TMA)
    dk_tiles, dv_tiles = k_tiles, v_tiles  # not read unless they exist
    if HAS_DK:
        dk_tiles = tile_source(dK, k_tokens, head_dim, stride_k, BLOCK_N, BLOCK_D, TMA)
    if HAS_DV:
        dv_tiles = tile_source(dV, k_tokens, head_dim, stride_v, BLOCK_N, BLOCK_D, TMA)
    gq = tl.zeros([BLOCK_M, SLICE], ACC)
    gdq = tl.zeros([BLOCK_M, SLICE], ACC)
    visible_until = first + k_tokens - q_tokens
    whole, last = key_range(first, q_tokens, k_tokens, BLOCK_M, BLOCK_N, CAUSAL)
    gq, gdq = walk_keys(
        gq, gdq, q, dq, a, b, lse, r, delta, omega, k_tiles, v_tiles, dk_tiles, dv_tiles, K, dK, 0, whole, stride_k,
        stride_v,
        visible_until, rows, keys, columns, slice_start, slice_columns, k_tokens, head_dim, scale, scale_log2,
        BLOCK_N, SLICE, SLICE != BLOCK_D, CAUSAL, False, EVEN_D, TMA, HAS_DQ, HAS_DK, HAS_DV, GRAD_Q, GRAD_DQ,
    )  # fmt: skip
    gq, gdq = walk_keys(
        gq, gdq, q, dq, a, b, lse, r, delta, omega, k_tiles, v_tiles, dk_tiles, dv_tiles, K, dK, whole, last,
        stride_k, stride_v,
        visible_until, rows, keys, columns, slice_start, slice_columns, k_tokens, head_dim, scale, scale_log2,
        BLOCK_N, SLICE, SLICE != BLOCK_D, CAUSAL, True, EVEN_D, TMA, HAS_DQ, HAS_DK, HAS_DV, GRAD_Q, GRAD_DQ,
    )  # fmt: skip
    at = sequence * stride_gb + head * stride_gh + q_start * stride_g
    if GRAD_Q:
        store_tile(GQ + at, first, rows, slice_columns, stride_g, q_tokens, head_dim, gq * scale)
    if GRAD_DQ:
        store_tile(GDQ + at, first, rows, slice_columns, stride_g, q_tokens, head_dim, gdq * scale)


def backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dq: torch.Tensor | None,
    dk: torch.Tensor | None,
    dv: torch.Tensor | None,
    o: torch.Tensor,
    do: torch.Tensor | None,
    lse: torch.Tensor,
    dlse: torch.Tensor | None,
    grad_o: torch.Tensor,
    grad_do: torch.Tensor | None,
    grad_lse: torch.Tensor | None,
    grad_dlse: torch.Tensor | None,
    spec: Spec,
    query_tile: Tile | None = None,
    key_tile: Tile | None = None,
    architecture: int | None = None,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of q, k, v, dq, dk, dv (None where the tangent is None). Without tangents, plain attention's gradients.

    `o`, `do`, `lse`, `dlse` are the forward's contiguous results. Memory: the gradients and two numbers per row.
    """
    q, k, v = (without_overlap(each) for each in (q, k, v))
    dq, dk, dv = (like_primal(*pair) for pair in ((q, dq), (k, dk), (v, dv)))
    ragged, tangent = spec.ragged, any(each is not None for each in (dq, dk, dv))
    heads, kv_heads, head_dim = q.shape[1], k.shape[1], q.shape[-1]
    sequences, q_tokens, k_tokens = (
        (q.shape[0], q.shape[2], k.shape[2])
        if ragged is None
        else (ragged.sequences, ragged.max_q_tokens, ragged.max_k_tokens)
    )
    architecture, bits = architecture or capability(q.device), q.element_size() * 8
    query_tile = query_tile or lookup("flash_attention_jvp_backward_q", head_dim, bits, architecture)
    key_tile = key_tile or lookup("flash_attention_jvp_backward_kv", head_dim, bits, architecture)
    grad_o = without_overlap(grad_o)
    grad_do = like_primal(grad_o, grad_do) if tangent else None
    delta = torch.empty_like(lse)
    omega = torch.empty_like(lse) if tangent else delta  # without a tangent neither omega nor r is read
    r = dlse if tangent else lse
    grads = [
        None if like is None else torch.empty(like.shape, dtype=q.dtype, device=q.device)
        for like in (q, k, v, dq, dk, dv)
    ]
    gq, gk, gv, gdq, gdk, gdv = grads
    shared = [
        ragged.q_offsets if ragged else None, ragged.k_offsets if ragged else None,
        *token_strides(q), *token_strides(k), *token_strides(v),
        *token_strides(grad_o), *row_strides(lse, ragged is not None),
    ]  # fmt: skip
    padded = padded_head_dim(head_dim)
    query_slices, key_slices = (padded // min(padded, tile.output_slice) for tile in (query_tile, key_tile))
    sizes = [q_tokens, k_tokens, head_dim, spec.scale, spec.scale / math.log(2)]
    flags = {
        "BLOCK_D": padded, "EVEN_D": padded == head_dim, "CAUSAL": spec.causal,
        "RAGGED": ragged is not None, "ACC": accumulator(q), "TANGENT": tangent,
        "HAS_DQ": dq is not None, "HAS_DK": dk is not None, "HAS_DV": dv is not None,
        "TMA": copy_engine_reads(architecture, q, k, v, dq, dk, dv, grad_o, grad_do), "enable_fp_fusion": True,
    }  # fmt: skip
    operands = [q, k, v, dq, dk, dv, grad_o, grad_do, lse, r, delta, omega]
    row_tokens, row_sequences = (q_tokens, sequences) if ragged is None else (q.shape[0], 1)
    with launching(q):
        if o.numel():
            row_kernel[(triton.cdiv(row_tokens, ROWS_PER_PROGRAM) * heads * row_sequences,)](
                o, do if tangent else None, grad_o, grad_do, grad_lse, grad_dlse if tangent else None, delta, omega,
                *token_strides(o), *token_strides(grad_o),
                *row_strides(lse, ragged is not None), *_optional_rows(grad_lse, ragged is not None),
                *_optional_rows(grad_dlse, ragged is not None), heads, row_tokens, head_dim,
                BLOCK_M=ROWS_PER_PROGRAM, BLOCK_D=padded, TANGENT=tangent, ACC=accumulator(q),
                num_warps=4, num_stages=1, enable_fp_fusion=True,
            )  # fmt: skip
            for wanted in _passes(QUERY_PASSES, query_tile, dq=dq):
                query_kernel[(triton.cdiv(q_tokens, query_tile.block_m) * heads * sequences * query_slices,)](
                    *operands, gq, gdq, *shared, *token_strides(gq), heads, heads // kv_heads, *sizes,
                    BLOCK_M=query_tile.block_m, BLOCK_N=query_tile.block_n, GRAD_Q="q" in wanted,
                    GRAD_DQ="dq" in wanted,
                    SLICE=padded // query_slices, num_warps=query_tile.num_warps, num_stages=query_tile.num_stages,
                    **flags,
                )  # fmt: skip
        if k.numel():
            for wanted in _passes(KEY_PASSES, key_tile, dk=dk, dv=dv):
                key_kernel[(triton.cdiv(k_tokens, key_tile.block_n) * kv_heads * sequences * key_slices,)](
                    *operands, gk, gv, gdk, gdv, *shared, *token_strides(gk), kv_heads, heads // kv_heads, *sizes,
                    BLOCK_M=key_tile.block_m, BLOCK_N=key_tile.block_n, GRAD_K="k" in wanted, GRAD_V="v" in wanted,
                    GRAD_DK="dk" in wanted, GRAD_DV="dv" in wanted,
                    SLICE=padded // key_slices, num_warps=key_tile.num_warps, num_stages=key_tile.num_stages, **flags,
                )  # fmt: skip
    return tuple(grads)


def _passes(
    passes: dict[int, tuple[tuple[str, ...], ...]], tile: Tile, **tangents: torch.Tensor | None
) -> list[set[str]]:
    """The gradients of each launch, less those of tangents that are not there."""
    absent = {name for name, tangent in tangents.items() if tangent is None}
    wanted = [set(group) - absent for group in passes[tile.passes]]
    return [group for group in wanted if group]


def _optional_rows(rows: torch.Tensor | None, ragged: bool) -> tuple[int, int, int]:
    return (1, 1, 1) if rows is None else row_strides(rows, ragged)
