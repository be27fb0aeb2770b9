"""Gradients through attention and its tangent, in Triton, without a [q_tokens, k_tokens] matrix. Names as the README's.

Three kernels: per-row numbers; the key side (a program owns a tile of keys and walks the queries that see it); the query
side (a program owns a tile of queries and walks the keys). No atomics: the result does not depend on timing.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from kernels.flash_attention_jvp.triton import optional_strides
from kernels.language import (
    LOG2E,
    accumulator,
    dot,
    key_range,
    load_tile,
    row_strides,
    sequence_span,
    store_tile,
    token_strides,
)
from kernels.ragged import Spec
from kernels.runtime import capability, device_of
from kernels.tiles import Tile, lookup, padded_head_dim

ROWS_PER_PROGRAM = 64
# Above this, four gradients of one key tile do not fit a program's registers: keys and values take a pass each.
HEAD_DIM_OF_ONE_PASS = 64


@triton.jit
def row_kernel(
    O, dO, A, B, G_LSE, G_DLSE, DELTA, OMEGA,
    stride_ob, stride_oh, stride_o, stride_ab, stride_ah, stride_a, stride_bb, stride_bh, stride_b,
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
        B += sequence * stride_bb + head * stride_bh
        b = load_tile(B, first, rows, columns, stride_b, tokens, head_dim, True, False).to(ACC)
        delta += tl.sum(b * do, 1)
        omega = tl.sum(b * o, 1)
        if G_DLSE is not None:
            at = G_DLSE + sequence * stride_tb + head * stride_th + (first + rows) * stride_t
            omega -= tl.load(at, mask=exists, other=0.0)
        tl.store(OMEGA + row, omega, mask=exists)
    tl.store(DELTA + row, delta, mask=exists)


@triton.jit
def walk_queries(
    gk, gv, gdk, gdv, k, v, dk, dv, Q, dQ, A, B, LSE, R, DELTA, OMEGA, start, end,
    stride_q, stride_dq, stride_a, stride_b, stride_l, seen_from, rows, keys, columns, q_tokens, head_dim,
    scale, scale_log2, BLOCK_M: tl.constexpr, MASKED: tl.constexpr, EVEN_D: tl.constexpr, TANGENT: tl.constexpr,
    HAS_DQ: tl.constexpr, HAS_DK: tl.constexpr, HAS_DV: tl.constexpr, GRAD_K: tl.constexpr, GRAD_V: tl.constexpr,
):  # fmt: skip
    """One stretch of queries folded into the gradients of one tile of keys. Every score matrix is held transposed."""
    for i in tl.range(start, end, BLOCK_M):
        q = load_tile(Q, i, rows, columns, stride_q, q_tokens, head_dim, True, EVEN_D)  # [BLOCK_M, D]
        a = load_tile(A, i, rows, columns, stride_a, q_tokens, head_dim, True, EVEN_D)
        exists = i + rows < q_tokens
        # Queries past the end get LSE = inf, hence p = 0: they add nothing.
        lse = tl.load(LSE + (i + rows) * stride_l, mask=exists, other=float("inf")) * LOG2E
        p = tl.exp2(dot(k, tl.trans(q)) * scale_log2 - lse[None, :])  # [BLOCK_N, BLOCK_M]
        if MASKED:
            p = tl.where(seen_from + keys[:, None] <= i + rows[None, :], p, 0.0)
        if TANGENT:
            b = load_tile(B, i, rows, columns, stride_b, q_tokens, head_dim, True, EVEN_D)
        if HAS_DQ:
            dq = load_tile(dQ, i, rows, columns, stride_dq, q_tokens, head_dim, True, EVEN_D)
            ds = dot(k, tl.trans(dq))
        if HAS_DK:
            ds = dot(dk, tl.trans(q), ds) if HAS_DQ else dot(dk, tl.trans(q))
        if HAS_DQ or HAS_DK:
            r = tl.load(R + (i + rows) * stride_l, mask=exists, other=0.0)
            ds = ds * scale - r[None, :]
        if GRAD_V:
            gv = dot(p.to(a.dtype), a, gv)
            if HAS_DQ or HAS_DK:
                gv = dot((p * ds).to(b.dtype), b, gv)
            if HAS_DV:
                gdv = dot(p.to(b.dtype), b, gdv)
        if GRAD_K:
            delta = tl.load(DELTA + (i + rows) * stride_l, mask=exists, other=0.0)
            c = dot(v, tl.trans(a))
            if HAS_DV:
                c = dot(dv, tl.trans(b), c)
            c -= delta[None, :]
            if HAS_DQ or HAS_DK:
                omega = tl.load(OMEGA + (i + rows) * stride_l, mask=exists, other=0.0)
                e = dot(v, tl.trans(b)) - omega[None, :]
                c += ds * e
                gds = (p * e).to(q.dtype)
                if HAS_DQ:
                    gk = dot(gds, dq, gk)
                if HAS_DK:
                    gdk = dot(gds, q, gdk)
            gk = dot((p * c).to(q.dtype), q, gk)
    return gk, gv, gdk, gdv


@triton.jit
def key_kernel(
    Q, K, V, dQ, dK, dV, A, B, LSE, R, DELTA, OMEGA, GK, GV, GDK, GDV, q_offsets, k_offsets,
    stride_qb, stride_qh, stride_q, stride_kb, stride_kh, stride_k, stride_vb, stride_vh, stride_v,
    stride_dqb, stride_dqh, stride_dq, stride_dkb, stride_dkh, stride_dk, stride_dvb, stride_dvh, stride_dv,
    stride_ab, stride_ah, stride_a, stride_bb, stride_bh, stride_b, stride_lb, stride_lh, stride_l,
    stride_gb, stride_gh, stride_g, kv_heads, group, q_tokens, k_tokens, head_dim, scale, scale_log2,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
    CAUSAL: tl.constexpr, RAGGED: tl.constexpr, ACC: tl.constexpr, TANGENT: tl.constexpr,
    HAS_DQ: tl.constexpr, HAS_DK: tl.constexpr, HAS_DV: tl.constexpr, GRAD_K: tl.constexpr, GRAD_V: tl.constexpr,
):  # fmt: skip
    """One program: one tile of keys of one key head, over the queries of every query head that shares it."""
    tiles = tl.cdiv(k_tokens, BLOCK_N)
    first = (tl.program_id(0) % tiles) * BLOCK_N  # early keys are seen by the most queries: they start first
    kv_head = ((tl.program_id(0) // tiles) % kv_heads).to(tl.int64)
    sequence = tl.program_id(0) // tiles // kv_heads
    q_start, q_tokens = sequence_span(q_offsets, sequence, q_tokens, RAGGED)
    k_start, k_tokens = sequence_span(k_offsets, sequence, k_tokens, RAGGED)
    if first >= k_tokens:
        return
    sequence = sequence.to(tl.int64)
    rows, keys, columns = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    K += sequence * stride_kb + kv_head * stride_kh + k_start * stride_k
    V += sequence * stride_vb + kv_head * stride_vh + k_start * stride_v
    k = load_tile(K, first, keys, columns, stride_k, k_tokens, head_dim, True, EVEN_D)  # [BLOCK_N, D]
    v = load_tile(V, first, keys, columns, stride_v, k_tokens, head_dim, True, EVEN_D)
    dk, dv = k, v  # not read unless they exist
    if HAS_DK:
        dK += sequence * stride_dkb + kv_head * stride_dkh + k_start * stride_dk
        dk = load_tile(dK, first, keys, columns, stride_dk, k_tokens, head_dim, True, EVEN_D)
    if HAS_DV:
        dV += sequence * stride_dvb + kv_head * stride_dvh + k_start * stride_dv
        dv = load_tile(dV, first, keys, columns, stride_dv, k_tokens, head_dim, True, EVEN_D)
    gk = tl.zeros([BLOCK_N, BLOCK_D], ACC)
    gv = tl.zeros([BLOCK_N, BLOCK_D], ACC)
    gdk = tl.zeros([BLOCK_N, BLOCK_D], ACC)
    gdv = tl.zeros([BLOCK_N, BLOCK_D], ACC)

    seen_from = first - (k_tokens - q_tokens)  # the first query that sees the tile's first key
    if CAUSAL:
        start = tl.minimum(tl.maximum(seen_from, 0) // BLOCK_M * BLOCK_M, q_tokens)
        whole = tl.minimum(tl.cdiv(tl.maximum(seen_from + BLOCK_N - 1, 0), BLOCK_M) * BLOCK_M, q_tokens)
    else:
        start = 0
        whole = 0
    for member in tl.range(0, group, num_stages=1):
        head = kv_head * group + member
        query, tangent = sequence * stride_qb + head * stride_qh + q_start * stride_q, 0
        if HAS_DQ:
            tangent = sequence * stride_dqb + head * stride_dqh + q_start * stride_dq
        out = sequence * stride_ab + head * stride_ah + q_start * stride_a
        out_tangent = 0
        if TANGENT:
            out_tangent = sequence * stride_bb + head * stride_bh + q_start * stride_b
        row = sequence * stride_lb + head * stride_lh + q_start * stride_l
        if CAUSAL:
            gk, gv, gdk, gdv = walk_queries(
                gk, gv, gdk, gdv, k, v, dk, dv, Q + query, dQ + tangent if HAS_DQ else None, A + out,
                B + out_tangent if TANGENT else None, LSE + row, R + row, DELTA + row, OMEGA + row, start, whole,
                stride_q, stride_dq, stride_a, stride_b, stride_l, seen_from, rows, keys, columns, q_tokens, head_dim,
                scale, scale_log2, BLOCK_M, True, EVEN_D, TANGENT, HAS_DQ, HAS_DK, HAS_DV, GRAD_K, GRAD_V,
            )  # fmt: skip
        gk, gv, gdk, gdv = walk_queries(
            gk, gv, gdk, gdv, k, v, dk, dv, Q + query, dQ + tangent if HAS_DQ else None, A + out,
            B + out_tangent if TANGENT else None, LSE + row, R + row, DELTA + row, OMEGA + row, whole, q_tokens,
            stride_q, stride_dq, stride_a, stride_b, stride_l, seen_from, rows, keys, columns, q_tokens, head_dim,
            scale, scale_log2, BLOCK_M, False, EVEN_D, TANGENT, HAS_DQ, HAS_DK, HAS_DV, GRAD_K, GRAD_V,
        )  # fmt: skip
    at = sequence * stride_gb + kv_head * stride_gh + k_start * stride_g
    if GRAD_K:
        store_tile(GK + at, first, keys, columns, stride_g, k_tokens, head_dim, gk * scale)
        if HAS_DK:
            store_tile(GDK + at, first, keys, columns, stride_g, k_tokens, head_dim, gdk * scale)
    if GRAD_V:
        store_tile(GV + at, first, keys, columns, stride_g, k_tokens, head_dim, gv)
        if HAS_DV:
            store_tile(GDV + at, first, keys, columns, stride_g, k_tokens, head_dim, gdv)


@triton.jit
def walk_keys(
    gq, gdq, q, dq, a, b, lse, r, delta, omega, K, V, dK, dV, start, end,
    stride_k, stride_v, stride_dk, stride_dv, visible_until, rows, keys, columns, k_tokens, head_dim, scale, scale_log2,
    BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr, EVEN_D: tl.constexpr,
    HAS_DQ: tl.constexpr, HAS_DK: tl.constexpr, HAS_DV: tl.constexpr,
):  # fmt: skip
    """One stretch of keys folded into the gradients of one tile of queries."""
    for n in tl.range(start, end, BLOCK_N):
        k = load_tile(K, n, keys, columns, stride_k, k_tokens, head_dim, MASKED, EVEN_D)  # [BLOCK_N, D]
        p = tl.exp2(dot(q, tl.trans(k)) * scale_log2 - lse[:, None])  # [BLOCK_M, BLOCK_N]
        if MASKED:
            seen = (n + keys < k_tokens)[None, :]
            if CAUSAL:
                seen = seen & (n + keys[None, :] <= visible_until + rows[:, None])
            p = tl.where(seen, p, 0.0)
        v = load_tile(V, n, keys, columns, stride_v, k_tokens, head_dim, MASKED, EVEN_D)
        c = dot(a, tl.trans(v))
        if HAS_DV:
            dv = load_tile(dV, n, keys, columns, stride_dv, k_tokens, head_dim, MASKED, EVEN_D)
            c = dot(b, tl.trans(dv), c)
        c -= delta[:, None]
        if HAS_DQ:
            ds = dot(dq, tl.trans(k))
        if HAS_DK:
            dk = load_tile(dK, n, keys, columns, stride_dk, k_tokens, head_dim, MASKED, EVEN_D)
            ds = dot(q, tl.trans(dk), ds) if HAS_DQ else dot(q, tl.trans(dk))
        if HAS_DQ or HAS_DK:
            e = dot(b, tl.trans(v)) - omega[:, None]
            c += (ds * scale - r[:, None]) * e
            gds = (p * e).to(k.dtype)
            if HAS_DQ:
                gdq = dot(gds, k, gdq)
            if HAS_DK:
                gq = dot(gds, dk, gq)
        gq = dot((p * c).to(k.dtype), k, gq)
    return gq, gdq


@triton.jit
def query_kernel(
    Q, K, V, dQ, dK, dV, A, B, LSE, R, DELTA, OMEGA, GQ, GDQ, q_offsets, k_offsets,
    stride_qb, stride_qh, stride_q, stride_kb, stride_kh, stride_k, stride_vb, stride_vh, stride_v,
    stride_dqb, stride_dqh, stride_dq, stride_dkb, stride_dkh, stride_dk, stride_dvb, stride_dvh, stride_dv,
    stride_ab, stride_ah, stride_a, stride_bb, stride_bh, stride_b, stride_lb, stride_lh, stride_l,
    stride_gb, stride_gh, stride_g, heads, group, q_tokens, k_tokens, head_dim, scale, scale_log2,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
    CAUSAL: tl.constexpr, RAGGED: tl.constexpr, ACC: tl.constexpr, TANGENT: tl.constexpr,
    HAS_DQ: tl.constexpr, HAS_DK: tl.constexpr, HAS_DV: tl.constexpr,
):  # fmt: skip
    """One program: one tile of queries of one head, over the keys that it sees."""
    tiles = tl.cdiv(q_tokens, BLOCK_M)
    first = (tiles - 1 - tl.program_id(0) % tiles) * BLOCK_M
    head = (tl.program_id(0) // tiles) % heads
    sequence = tl.program_id(0) // tiles // heads
    q_start, q_tokens = sequence_span(q_offsets, sequence, q_tokens, RAGGED)
    k_start, k_tokens = sequence_span(k_offsets, sequence, k_tokens, RAGGED)
    if first >= q_tokens:
        return
    sequence = sequence.to(tl.int64)
    kv_head = (head // group).to(tl.int64)
    head = head.to(tl.int64)
    rows, keys, columns = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    K += sequence * stride_kb + kv_head * stride_kh + k_start * stride_k
    V += sequence * stride_vb + kv_head * stride_vh + k_start * stride_v
    if HAS_DK:
        dK += sequence * stride_dkb + kv_head * stride_dkh + k_start * stride_dk
    if HAS_DV:
        dV += sequence * stride_dvb + kv_head * stride_dvh + k_start * stride_dv
    Q += sequence * stride_qb + head * stride_qh + q_start * stride_q
    A += sequence * stride_ab + head * stride_ah + q_start * stride_a
    q = load_tile(Q, first, rows, columns, stride_q, q_tokens, head_dim, True, EVEN_D)  # [BLOCK_M, D]
    a = load_tile(A, first, rows, columns, stride_a, q_tokens, head_dim, True, EVEN_D)
    dq, b = q, a  # not read unless they exist
    if HAS_DQ:
        dQ += sequence * stride_dqb + head * stride_dqh + q_start * stride_dq
        dq = load_tile(dQ, first, rows, columns, stride_dq, q_tokens, head_dim, True, EVEN_D)
    if TANGENT:
        B += sequence * stride_bb + head * stride_bh + q_start * stride_b
        b = load_tile(B, first, rows, columns, stride_b, q_tokens, head_dim, True, EVEN_D)
    exists = first + rows < q_tokens
    row = sequence * stride_lb + head * stride_lh + (q_start + first + rows) * stride_l
    lse = tl.load(LSE + row, mask=exists, other=float("inf")) * LOG2E
    delta = tl.load(DELTA + row, mask=exists, other=0.0)
    r, omega = delta, delta  # not read unless scores have a tangent
    if HAS_DQ or HAS_DK:
        r = tl.load(R + row, mask=exists, other=0.0)
        omega = tl.load(OMEGA + row, mask=exists, other=0.0)
    gq = tl.zeros([BLOCK_M, BLOCK_D], ACC)
    gdq = tl.zeros([BLOCK_M, BLOCK_D], ACC)
    visible_until = first + k_tokens - q_tokens
    whole, last = key_range(first, q_tokens, k_tokens, BLOCK_M, BLOCK_N, CAUSAL)
    gq, gdq = walk_keys(
        gq, gdq, q, dq, a, b, lse, r, delta, omega, K, V, dK, dV, 0, whole, stride_k, stride_v, stride_dk, stride_dv,
        visible_until, rows, keys, columns, k_tokens, head_dim, scale, scale_log2,
        BLOCK_N, CAUSAL, False, EVEN_D, HAS_DQ, HAS_DK, HAS_DV,
    )  # fmt: skip
    gq, gdq = walk_keys(
        gq, gdq, q, dq, a, b, lse, r, delta, omega, K, V, dK, dV, whole, last, stride_k, stride_v, stride_dk, stride_dv,
        visible_until, rows, keys, columns, k_tokens, head_dim, scale, scale_log2,
        BLOCK_N, CAUSAL, True, EVEN_D, HAS_DQ, HAS_DK, HAS_DV,
    )  # fmt: skip
    at = sequence * stride_gb + head * stride_gh + q_start * stride_g
    store_tile(GQ + at, first, rows, columns, stride_g, q_tokens, head_dim, gq * scale)
    if HAS_DQ:
        store_tile(GDQ + at, first, rows, columns, stride_g, q_tokens, head_dim, gdq * scale)


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
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of q, k, v, dq, dk, dv (None where the tangent is None). Without tangents, plain attention's gradients.

    `o`, `do`, `lse`, `dlse` are the forward's contiguous results. Memory: the gradients and two numbers per row.
    """
    ragged, tangent = spec.ragged, any(each is not None for each in (dq, dk, dv))
    heads, kv_heads, head_dim = q.shape[1], k.shape[1], q.shape[-1]
    sequences, q_tokens, k_tokens = (
        (q.shape[0], q.shape[2], k.shape[2])
        if ragged is None
        else (ragged.sequences, ragged.max_q_tokens, ragged.max_k_tokens)
    )
    arch, bits = capability(q.device), q.element_size() * 8
    query_tile = query_tile or lookup("flash_attention_jvp_backward_q", head_dim, bits, arch)
    key_tile = key_tile or lookup("flash_attention_jvp_backward_kv", head_dim, bits, arch)
    grad_o, grad_do = _unit_stride(grad_o), _unit_stride(grad_do) if tangent else None
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
        *optional_strides(dq), *optional_strides(dk), *optional_strides(dv),
        *token_strides(grad_o), *optional_strides(grad_do), *row_strides(lse, ragged is not None),
    ]  # fmt: skip
    sizes = [q_tokens, k_tokens, head_dim, spec.scale, spec.scale / math.log(2)]
    flags = {
        "BLOCK_D": padded_head_dim(head_dim), "EVEN_D": padded_head_dim(head_dim) == head_dim, "CAUSAL": spec.causal,
        "RAGGED": ragged is not None, "ACC": accumulator(q), "TANGENT": tangent,
        "HAS_DQ": dq is not None, "HAS_DK": dk is not None, "HAS_DV": dv is not None, "enable_fp_fusion": True,
    }  # fmt: skip
    operands = [q, k, v, dq, dk, dv, grad_o, grad_do, lse, r, delta, omega]
    row_tokens, row_sequences = (q_tokens, sequences) if ragged is None else (q.shape[0], 1)
    with device_of(q):
        if o.numel():
            row_kernel[(triton.cdiv(row_tokens, ROWS_PER_PROGRAM) * heads * row_sequences,)](
                o, do if tangent else None, grad_o, grad_do, grad_lse, grad_dlse if tangent else None, delta, omega,
                *token_strides(o), *token_strides(grad_o), *optional_strides(grad_do),
                *row_strides(lse, ragged is not None), *_optional_rows(grad_lse, ragged is not None),
                *_optional_rows(grad_dlse, ragged is not None), heads, row_tokens, head_dim,
                BLOCK_M=ROWS_PER_PROGRAM, BLOCK_D=padded_head_dim(head_dim), TANGENT=tangent, ACC=accumulator(q),
                num_warps=4, num_stages=1, enable_fp_fusion=True,
            )  # fmt: skip
            query_kernel[(triton.cdiv(q_tokens, query_tile.block_m) * heads * sequences,)](
                *operands, gq, gdq, *shared, *token_strides(gq), heads, heads // kv_heads, *sizes,
                BLOCK_M=query_tile.block_m, BLOCK_N=query_tile.block_n,
                num_warps=query_tile.num_warps, num_stages=query_tile.num_stages, **flags,
            )  # fmt: skip
        if k.numel():
            one_pass = head_dim <= HEAD_DIM_OF_ONE_PASS
            for grad_k, grad_v in ((True, True),) if one_pass else ((True, False), (False, True)):
                key_kernel[(triton.cdiv(k_tokens, key_tile.block_n) * kv_heads * sequences,)](
                    *operands, gk, gv, gdk, gdv, *shared, *token_strides(gk), kv_heads, heads // kv_heads, *sizes,
                    BLOCK_M=key_tile.block_m, BLOCK_N=key_tile.block_n, GRAD_K=grad_k, GRAD_V=grad_v,
                    num_warps=key_tile.num_warps, num_stages=key_tile.num_stages, **flags,
                )  # fmt: skip
    return tuple(grads)


def _unit_stride(tensor: torch.Tensor) -> torch.Tensor:
    """Autograd may hand over an expanded tensor; the kernels need rows without gaps."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _optional_rows(rows: torch.Tensor | None, ragged: bool) -> tuple[int, int, int]:
    return (1, 1, 1) if rows is None else row_strides(rows, ragged)
