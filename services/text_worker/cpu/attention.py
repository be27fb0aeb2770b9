"""Attention over paged keys and values, for prefill chunks and decode steps alike.

A block holds `BLOCK_TOKENS` tokens: keys as [head_dim, tokens], so that a query's scores of a whole block are one
vector; values as [tokens, head_dim]. A row's arithmetic is in one fixed order, block by block and token by token,
whatever rows it is computed with: a token's result is the same bits in any batch and in any chunk.

The loops are unrolled by 8 by hand: a running sum in memory is then read and written once for 8 multiply-adds.
"""

import math

import numpy as np
from numba import prange

from headway.prefix import BLOCK_TOKENS
from services.text_worker.cpu.compiled import compiled
from services.text_worker.cpu.exponential import exp

TILE_ROWS = 8
"""Rows of one sequence that share a block while it is in the first-level cache."""


@compiled()
def _add_scores(qkv, row, at, head_dim, scale, keys, block, kv, scores, line, place):
    """scores[line, place:place + tokens] = scale * query . keys of one block."""
    for j in range(BLOCK_TOKENS):
        scores[line, place + j] = np.float32(0.0)
    d = 0
    while d + 8 <= head_dim:
        q0, q1 = qkv[row, at + d] * scale, qkv[row, at + d + 1] * scale
        q2, q3 = qkv[row, at + d + 2] * scale, qkv[row, at + d + 3] * scale
        q4, q5 = qkv[row, at + d + 4] * scale, qkv[row, at + d + 5] * scale
        q6, q7 = qkv[row, at + d + 6] * scale, qkv[row, at + d + 7] * scale
        for j in range(BLOCK_TOKENS):
            total = scores[line, place + j]
            total = total + q0 * keys[block, kv, d, j]
            total = total + q1 * keys[block, kv, d + 1, j]
            total = total + q2 * keys[block, kv, d + 2, j]
            total = total + q3 * keys[block, kv, d + 3, j]
            total = total + q4 * keys[block, kv, d + 4, j]
            total = total + q5 * keys[block, kv, d + 5, j]
            total = total + q6 * keys[block, kv, d + 6, j]
            scores[line, place + j] = total + q7 * keys[block, kv, d + 7, j]
        d += 8
    while d < head_dim:
        q0 = qkv[row, at + d] * scale
        for j in range(BLOCK_TOKENS):
            scores[line, place + j] = scores[line, place + j] + q0 * keys[block, kv, d, j]
        d += 1


@compiled()
def _add_values(scores, line, place, tokens, values, block, kv, head_dim, out, row, at):
    """out[row, at:at + head_dim] += the first `tokens` values of one block, weighed by scores[line, place:]."""
    t = 0
    while t + 8 <= tokens:
        p0, p1 = scores[line, place + t], scores[line, place + t + 1]
        p2, p3 = scores[line, place + t + 2], scores[line, place + t + 3]
        p4, p5 = scores[line, place + t + 4], scores[line, place + t + 5]
        p6, p7 = scores[line, place + t + 6], scores[line, place + t + 7]
        for d in range(head_dim):
            total = out[row, at + d]
            total = total + p0 * values[block, kv, t, d]
            total = total + p1 * values[block, kv, t + 1, d]
            total = total + p2 * values[block, kv, t + 2, d]
            total = total + p3 * values[block, kv, t + 3, d]
            total = total + p4 * values[block, kv, t + 4, d]
            total = total + p5 * values[block, kv, t + 5, d]
            total = total + p6 * values[block, kv, t + 6, d]
            out[row, at + d] = total + p7 * values[block, kv, t + 7, d]
        t += 8
    while t < tokens:
        p0 = scores[line, place + t]
        for d in range(head_dim):
            out[row, at + d] = out[row, at + d] + p0 * values[block, kv, t, d]
        t += 1


@compiled()
def _weigh(scores, line, begin, end, first, last, softcap, lanes):
    """Turns scores[line, begin:end] into softmax's numerators, 0 outside first..last; returns their sum.

    `begin` and `end` are block borders.
    """
    if softcap > 0.0:
        for j in range(begin, end):
            scores[line, j] = softcap * np.float32(math.tanh(scores[line, j] / softcap))
    top = scores[line, first]
    for j in range(first, last + 1):
        top = max(top, scores[line, j])
    for j in range(begin, end):
        scores[line, j] = exp(min(scores[line, j] - top, np.float32(0.0)))  # what is masked may be anything
    for j in range(begin, first):
        scores[line, j] = np.float32(0.0)
    for j in range(last + 1, end):
        scores[line, j] = np.float32(0.0)
    for j in range(BLOCK_TOKENS):
        lanes[j] = np.float32(0.0)
    for place in range(begin, end, BLOCK_TOKENS):
        for j in range(BLOCK_TOKENS):
            lanes[j] = lanes[j] + scores[line, place + j]
    total = np.float32(0.0)
    for j in range(BLOCK_TOKENS):
        total = total + lanes[j]
    return total


@compiled()
def _attend_tile(qkv, out, keys, values, tables, sequence, row, rows, start, kv, group, scale, window, softcap):
    """One key head of up to `TILE_ROWS` rows of a sequence, the first at position `start`."""
    head_dim = keys.shape[2]
    ends = start + rows
    first_block = max(0, start - window + 1) // BLOCK_TOKENS if window > 0 else 0
    blocks = (ends + BLOCK_TOKENS - 1) // BLOCK_TOKENS
    begin, end = first_block * BLOCK_TOKENS, blocks * BLOCK_TOKENS
    scores = np.empty((rows * group, end), np.float32)
    lanes = np.empty(BLOCK_TOKENS, np.float32)
    sums = np.empty(rows * group, np.float32)
    for b in range(first_block, blocks):
        for line in range(rows * group):
            at = (kv * group + line % group) * head_dim
            block = tables[sequence, b]
            _add_scores(qkv, row + line // group, at, head_dim, scale, keys, block, kv, scores, line, b * BLOCK_TOKENS)
    for line in range(rows * group):
        last = start + line // group
        first = max(begin, last - window + 1) if window > 0 else 0
        sums[line] = _weigh(scores, line, begin, end, first, last, softcap, lanes)
        at = (kv * group + line % group) * head_dim
        for d in range(head_dim):
            out[row + line // group, at + d] = np.float32(0.0)
    for b in range(first_block, blocks):
        tokens = min(BLOCK_TOKENS, ends - b * BLOCK_TOKENS)  # what lies behind was never written
        for line in range(rows * group):
            at = (kv * group + line % group) * head_dim
            block = tables[sequence, b]
            _add_values(
                scores, line, b * BLOCK_TOKENS, tokens, values, block, kv, head_dim, out, row + line // group, at
            )
    for line in range(rows * group):
        at = (kv * group + line % group) * head_dim
        share = np.float32(1.0) / sums[line]
        for d in range(head_dim):
            out[row + line // group, at + d] = out[row + line // group, at + d] * share


@compiled(parallel=True)
def attend(qkv, out, keys, values, tables, tiles, heads, scale, window, softcap):
    """Causal grouped-query attention of packed rows over their sequences' blocks; writes all of `out`.

    qkv: fp32 [rows, (heads + 2 * kv_heads) * head_dim], queries rotated. out: fp32 [rows, heads * head_dim].
    keys: fp32 [blocks, kv_heads, head_dim, BLOCK_TOKENS]; values: fp32 [blocks, kv_heads, BLOCK_TOKENS, head_dim].
    tables: int32 [sequences, most blocks]. tiles: int32 [tiles, 4] of sequence, first row, rows, first position.
    scale multiplies scores; window: tokens seen, the row's own among them, 0 for all; softcap: 0 for none.
    """
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    for item in prange(len(tiles) * kv_heads):
        tile, kv = item // kv_heads, item % kv_heads
        _attend_tile(
            qkv, out, keys, values, tables, tiles[tile, 0], tiles[tile, 1], tiles[tile, 2], tiles[tile, 3],
            kv, group, scale, window, softcap,
        )  # fmt: skip


@compiled()
def _normed_head(qkv, row, at, head_dim, weight, eps):
    """RMSNorm of one head in place."""
    squares = np.float32(0.0)
    for d in range(head_dim):
        squares = squares + qkv[row, at + d] * qkv[row, at + d]
    factor = np.float32(1.0 / math.sqrt(squares / head_dim + eps))
    for d in range(head_dim):
        qkv[row, at + d] = qkv[row, at + d] * factor * weight[d]


@compiled(parallel=True)
def turn_and_store(qkv, heads, positions, sequences, cos, sin, query_norm, key_norm, eps, tables, keys, values):
    """Rotates queries and keys of `qkv` in place, normed first where norms have elements, and caches keys and values.

    positions, sequences: int32 [rows]. cos, sin: fp32 [context, head_dim / 2]; element i turns with i + head_dim / 2.
    Otherwise as `attend`. Mutates qkv, keys and values.
    """
    kv_heads, head_dim = keys.shape[1], keys.shape[2]
    half = head_dim // 2
    for row in prange(len(qkv)):
        position = positions[row]
        block = tables[sequences[row], position // BLOCK_TOKENS]
        slot = position % BLOCK_TOKENS
        for head in range(heads + kv_heads):
            at = head * head_dim
            if len(query_norm) > 0:
                _normed_head(qkv, row, at, head_dim, query_norm if head < heads else key_norm, eps)
            for d in range(half):
                a, b = qkv[row, at + d], qkv[row, at + half + d]
                c, s = cos[position, d], sin[position, d]
                qkv[row, at + d] = a * c - b * s
                qkv[row, at + half + d] = b * c + a * s
        for kv in range(kv_heads):
            key_at, value_at = (heads + kv) * head_dim, (heads + kv_heads + kv) * head_dim
            for d in range(head_dim):
                keys[block, kv, d, slot] = qkv[row, key_at + d]
                values[block, kv, slot, d] = qkv[row, value_at + d]
