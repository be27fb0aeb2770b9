"""Paged attention in Triton: decode and chunked prefill, split over the keys where the batch cannot fill the device."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from kernels.language import LN2, accumulator, dot, launching, row_dtype
from kernels.paged_attention.batch import PagedBatch
from kernels.runtime import capability, multiprocessors
from kernels.tiles import Tile, lookup, padded_head_dim

# Programs wanted per multiprocessor: enough loads in flight to hide memory latency.
PROGRAMS_PER_MULTIPROCESSOR = 4
# No split gets fewer keys than this: below it, merging costs more than it saves.
KEYS_PER_SPLIT = 256
SPLITS_MAX = 64
MERGE_ROWS = 16


@triton.jit
def load_keys(
    cache, blocks, slots, kv_head, columns, exists, stride_b, stride_t, stride_h, head_dim, like, EVEN_D: tl.constexpr
):
    """Rows of the cache by (block, slot), in the queries' type, which holds int8 and float8 exactly; else zero."""
    at = cache + (blocks * stride_b + slots * stride_t + kv_head * stride_h)[:, None] + columns[None, :]
    mask = exists[:, None] if EVEN_D else exists[:, None] & (columns < head_dim)[None, :]
    values = tl.load(at, mask=mask, other=0.0)  # [BLOCK_N, D]
    if values.dtype == tl.int8:
        values = values.to(tl.float32)  # the interpreter makes nonsense of int8 to bfloat16; a GPU goes this way anyway
    return values.to(like)


@triton.jit
def load_scales(scales, blocks, slots, kv_head, exists, stride_b, stride_t, stride_h):
    return tl.load(scales + blocks * stride_b + slots * stride_t + kv_head * stride_h, mask=exists, other=0.0)


@triton.jit
def attend_kernel(
    Q, K, V, K_SCALES, V_SCALES, O, LSE, block_tables, k_lengths, q_offsets,
    stride_q, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_ksb, stride_kst, stride_ksh, stride_vsb, stride_vst, stride_vsh,
    stride_os, stride_o, stride_oh, stride_ls, stride_lh, stride_table,
    kv_heads, group, row_tiles, splits, head_dim, scale_log2,
    BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr, SCALED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: one tile of rows of one key head of one sequence, over one split of the keys.

    A row is a (query token, query head of the group) pair, so that all heads that share keys read them once.
    """
    program = tl.program_id(0)
    split = program % splits
    kv_head = (program // splits) % kv_heads
    tile = (program // splits // kv_heads) % row_tiles
    sequence = program // splits // kv_heads // row_tiles
    q_start = tl.load(q_offsets + sequence)
    q_tokens = tl.load(q_offsets + sequence + 1) - q_start
    k_tokens = tl.load(k_lengths + sequence)
    first = tile * BLOCK_M
    if first >= q_tokens * group:
        return
    rows = first + tl.arange(0, BLOCK_M)
    tokens = rows // group  # within the sequence's queries
    heads = kv_head * group + rows % group
    is_row = rows < q_tokens * group
    columns = tl.arange(0, BLOCK_D)
    q_at = Q + ((q_start + tokens).to(tl.int64) * stride_q + heads * stride_qh)[:, None] + columns[None, :]
    q = tl.load(q_at, mask=is_row[:, None] & (columns < head_dim)[None, :], other=0.0)  # [BLOCK_M, D]

    # Each split takes the same number of whole key tiles, of the keys that this sequence really has.
    per_split = tl.cdiv(tl.cdiv(k_tokens, BLOCK_N), splits) * BLOCK_N
    last_token = tl.minimum((first + BLOCK_M - 1) // group, q_tokens - 1)
    seen = k_tokens - q_tokens + last_token + 1  # keys that the tile's last row sees
    start = split * per_split
    end = tl.minimum(start + per_split, seen)
    acc = tl.zeros([BLOCK_M, BLOCK_D], ACC)
    l = tl.zeros([BLOCK_M], ACC)
    m = tl.full([BLOCK_M], -float("inf"), ACC)
    visible_until = k_tokens - q_tokens + tokens
    wide_head = kv_head.to(tl.int64)
    for n in tl.range(start, end, BLOCK_N):
        keys = n + tl.arange(0, BLOCK_N)
        exists = keys < k_tokens
        table = block_tables + sequence.to(tl.int64) * stride_table + keys // BLOCK_SIZE
        blocks = tl.load(table, mask=exists, other=0).to(tl.int64)
        slots = keys % BLOCK_SIZE
        k = load_keys(
            K, blocks, slots, wide_head, columns, exists, stride_kb, stride_kt, stride_kh, head_dim, q.dtype, EVEN_D
        )
        s = dot(q, tl.trans(k)) * scale_log2  # [BLOCK_M, BLOCK_N]
        if SCALED:  # one number per key: it may wait until after the product
            k_scale = load_scales(K_SCALES, blocks, slots, wide_head, exists, stride_ksb, stride_kst, stride_ksh)
            s *= k_scale[None, :]
        s = tl.where(keys[None, :] <= visible_until[:, None], s, -float("inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        m_used = tl.where(m_new == -float("inf"), 0.0, m_new)
        p = tl.exp2(s - m_used[:, None])
        a = tl.exp2(m - m_used)
        l = l * a + tl.sum(p, 1)
        v = load_keys(
            V, blocks, slots, wide_head, columns, exists, stride_vb, stride_vt, stride_vh, head_dim, q.dtype, EVEN_D
        )
        if SCALED:
            p *= load_scales(V_SCALES, blocks, slots, wide_head, exists, stride_vsb, stride_vst, stride_vsh)[None, :]
        acc = dot(p.to(v.dtype), v, acc * a[:, None])
        m = m_new
    seen_any = l > 0.0
    o = acc / tl.where(seen_any, l, 1.0)[:, None]
    lse = tl.where(seen_any, (m + tl.log2(tl.where(seen_any, l, 1.0))) * LN2, -float("inf"))
    wide_tokens = (q_start + tokens).to(tl.int64)
    o_at = O + split.to(tl.int64) * stride_os + (wide_tokens * stride_o + heads * stride_oh)[:, None] + columns[None, :]
    tl.store(o_at, o.to(O.dtype.element_ty), mask=is_row[:, None] & (columns < head_dim)[None, :])
    tl.store(LSE + split.to(tl.int64) * stride_ls + heads * stride_lh + wide_tokens, lse, mask=is_row)


@triton.jit
def merge_kernel(
    PARTS, PART_LSE, O, LSE, stride_ps, stride_p, stride_ph, stride_ls, stride_lh, stride_o, stride_oh,
    rows, heads, splits, head_dim, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Partial results of the splits, weighted by how much of the softmax each holds: exp(lse_split - lse)."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # (query token, head) pairs
    token, head = (row // heads).to(tl.int64), row % heads
    is_row = row < rows
    columns = tl.arange(0, BLOCK_D)
    at = PARTS + (token * stride_p + head * stride_ph)[:, None] + columns[None, :]
    lse_at = head * stride_lh + token
    mask = is_row[:, None] & (columns < head_dim)[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_D], ACC)
    l = tl.zeros([BLOCK_M], ACC)
    m = tl.full([BLOCK_M], -float("inf"), ACC)
    for split in tl.range(0, splits):
        part = tl.load(PART_LSE + lse_at + split * stride_ls, mask=is_row, other=-float("inf"))
        m_new = tl.maximum(m, part)
        m_used = tl.where(m_new == -float("inf"), 0.0, m_new)
        weight = tl.exp(part - m_used)
        a = tl.exp(m - m_used)
        values = tl.load(at + split * stride_ps, mask=mask, other=0.0)
        acc = acc * a[:, None] + weight[:, None] * values
        l = l * a + weight
        m = m_new
    seen_any = l > 0.0
    o = acc / tl.where(seen_any, l, 1.0)[:, None]
    tl.store(O + (token * stride_o + head * stride_oh)[:, None] + columns[None, :], o.to(O.dtype.element_ty), mask=mask)
    lse = tl.where(seen_any, m + tl.log(tl.where(seen_any, l, 1.0)), -float("inf"))
    tl.store(LSE + lse_at, lse, mask=is_row)


def split_count(programs: int, max_k_tokens: int, device_multiprocessors: int) -> int:
    """Into how many parts to split the keys: as many as fill the device, none smaller than KEYS_PER_SPLIT."""
    wanted = device_multiprocessors * PROGRAMS_PER_MULTIPROCESSOR // max(1, programs)
    useful = max_k_tokens // KEYS_PER_SPLIT
    return max(1, min(wanted, useful, SPLITS_MAX))


def forward(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k_scales: torch.Tensor | None,
    v_scales: torch.Tensor | None,
    batch: PagedBatch,
    scale: float,
    tile: Tile | None = None,
    splits: int | None = None,
    architecture: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(o like q, lse [heads, q_tokens]). Launches on q's device; arguments were checked by the op."""
    heads, head_dim, kv_heads = q.shape[1], q.shape[2], k_cache.shape[2]
    group = heads // kv_heads
    rows = batch.max_q_tokens * group
    if tile is None:
        op = "paged_attention_decode" if rows <= 16 else "paged_attention_prefill"
        tile = lookup(op, head_dim, q.element_size() * 8, architecture or capability(q.device))
    row_tiles = triton.cdiv(rows, tile.block_m)
    programs = batch.sequences * row_tiles * kv_heads
    splits = splits or split_count(programs, batch.max_k_tokens, multiprocessors(q.device))
    o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((heads, q.shape[0]), dtype=row_dtype(q), device=q.device)
    if q.numel() == 0:
        return o, lse
    parts, part_lse = o[None], lse[None]
    if splits > 1:
        parts = torch.empty((splits, *q.shape), dtype=row_dtype(q), device=q.device)
        part_lse = torch.empty((splits, *lse.shape), dtype=row_dtype(q), device=q.device)
    with launching(q):
        attend_kernel[(programs * splits,)](
            q, k_cache, v_cache, k_scales, v_scales, parts, part_lse,
            batch.block_tables, batch.k_lengths, batch.q_offsets,
            q.stride(0), q.stride(1), *k_cache.stride()[:3], *v_cache.stride()[:3],
            *_scale_strides(k_scales), *_scale_strides(v_scales),
            parts.stride(0), parts.stride(1), parts.stride(2), part_lse.stride(0), part_lse.stride(1),
            batch.block_tables.stride(0), kv_heads, group, row_tiles, splits, head_dim, scale / math.log(2),
            BLOCK_SIZE=batch.block_size, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
            BLOCK_D=padded_head_dim(head_dim), EVEN_D=padded_head_dim(head_dim) == head_dim,
            SCALED=k_scales is not None, ACC=accumulator(q),
            num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=True,
        )  # fmt: skip
        if splits > 1:
            merge_kernel[(triton.cdiv(q.shape[0] * heads, MERGE_ROWS),)](
                parts, part_lse, o, lse, parts.stride(0), parts.stride(1), parts.stride(2),
                part_lse.stride(0), part_lse.stride(1), o.stride(0), o.stride(1),
                q.shape[0] * heads, heads, splits, head_dim,
                BLOCK_M=MERGE_ROWS, BLOCK_D=padded_head_dim(head_dim), ACC=accumulator(q),
                num_warps=4, num_stages=1, enable_fp_fusion=True,
            )  # fmt: skip
    return o, lse


def _scale_strides(scales: torch.Tensor | None) -> tuple[int, ...]:
    return (1, 1, 1) if scales is None else scales.stride()
