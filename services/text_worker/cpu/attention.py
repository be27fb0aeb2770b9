"""Attention over paged keys and values, for prefill chunks and decode steps alike.

A block holds `BLOCK_TOKENS` tokens: keys as [head_dim, tokens], so that a query's scores are vectors of tokens; values
as [tokens, head_dim]. A row's arithmetic is in one fixed order, block by block and token by token, whatever rows it is
computed with: a token's result is the same bits in any batch and in any chunk.

The heads that share a key head, for all rows of a tile, are lines of one small matrix, and both products run over
several lines at once (`tiles`): what is read of a block serves all of them.
"""

import math

import numpy as np
from numba import prange

from headway.prefix import BLOCK_TOKENS
from services.text_worker.cpu.bf16 import rounded, widened
from services.text_worker.cpu.compiled import compiled
from services.text_worker.cpu.exponential import exp
from services.text_worker.cpu.tiles import LANES, WIDE, tile

TILE_ROWS = 8
"""Rows of one sequence that share a block while it is in the first-level cache."""
_MOST_VECTORS = 8

PARTS = BLOCK_TOKENS // LANES
"""Vectors of a block's tokens."""
# Lines and vectors of a tile of scores: as many sums as registers hold beside what is multiplied. Few lines take many
# vectors, or each multiply-add would wait for the one before.
_KEYS_12, _KEYS_4, _KEYS_3, _KEYS_1 = (2, 6, 8, 8) if WIDE else (1, 1, 2, 4)
_scores_12_n, _scores_12_1 = tile(12, _KEYS_12), tile(12, 1)
_scores_4_n, _scores_4_1 = tile(4, _KEYS_4), tile(4, 1)
_scores_3_n, _scores_3_1 = tile(3, _KEYS_3), tile(3, 1)
_scores_1_n, _scores_1_1 = tile(1, _KEYS_1), tile(1, 1)
# Lines and vectors of a tile of values.
_VECTORS = 4 if WIDE else 2
_values_6_n, _values_6_1 = tile(6, _VECTORS), tile(6, 1)
_values_3_n, _values_3_1 = tile(3, _VECTORS), tile(3, 1)
_values_1_n, _values_1_1 = tile(1, _VECTORS), tile(1, 1)


@compiled()
def _place_keys(places, tables, sequence, first_block, at, vectors, kv, kv_heads, head_dim, each):
    """Where the keys of some vectors of tokens begin, counted from the first block on; `each`: numbers side by side."""
    for v in range(vectors):
        block = np.int64(tables[sequence, first_block + (at + v) // PARTS])
        places[v] = (block * kv_heads + kv) * head_dim * BLOCK_TOKENS + (at + v) % PARTS * LANES * each


@compiled()
def _score(queries, keys, tables, sequence, first_block, vectors, kv, scores):
    """scores[line, tokens from first_block on] += queries[line] . keys, of `vectors` vectors. Mutates scores."""
    lines, head_dim = queries.shape
    kv_heads, length, each = keys.shape[1], scores.shape[1], 2 if keys.ndim == 5 else 1
    places = np.empty(_MOST_VECTORS, np.int64)
    line = 0
    while line < lines:
        left = lines - line
        size = 12 if left >= 12 else 4 if left >= 4 else 3 if left == 3 else 1
        most = _KEYS_12 if size == 12 else _KEYS_4 if size == 4 else _KEYS_3 if size == 3 else _KEYS_1
        query, at = line * head_dim, 0
        while at < vectors:
            taken = most if at + most <= vectors else 1
            _place_keys(places, tables, sequence, first_block, at, taken, kv, kv_heads, head_dim, each)
            to = line * length + at * LANES
            if size == 12:
                if taken > 1:
                    _scores_12_n(queries, query, head_dim, keys, places, BLOCK_TOKENS, head_dim, scores, to, length)
                else:
                    _scores_12_1(queries, query, head_dim, keys, places, BLOCK_TOKENS, head_dim, scores, to, length)
            elif size == 4:
                if taken > 1:
                    _scores_4_n(queries, query, head_dim, keys, places, BLOCK_TOKENS, head_dim, scores, to, length)
                else:
                    _scores_4_1(queries, query, head_dim, keys, places, BLOCK_TOKENS, head_dim, scores, to, length)
            elif size == 3:
                if taken > 1:
                    _scores_3_n(queries, query, head_dim, keys, places, BLOCK_TOKENS, head_dim, scores, to, length)
                else:
                    _scores_3_1(queries, query, head_dim, keys, places, BLOCK_TOKENS, head_dim, scores, to, length)
            elif taken > 1:
                _scores_1_n(queries, query, head_dim, keys, places, BLOCK_TOKENS, head_dim, scores, to, length)
            else:
                _scores_1_1(queries, query, head_dim, keys, places, BLOCK_TOKENS, head_dim, scores, to, length)
            at += taken
        line += size


@compiled()
def _value(values, block, kv, t, d):
    if values.ndim == 5:
        return widened(values[block, kv, t // 2, d, t % 2])
    return values[block, kv, t, d]


@compiled()
def begin_of_block(values, block, kv, tokens):
    """The first `tokens` values of one head of a block in bf16, zeros behind; uint16 [1, 1, tokens, head_dim, 2].

    Nobody wrote behind them, and 0 times what lies there may not be 0.
    """
    tail = np.zeros((1, 1, BLOCK_TOKENS // 2, values.shape[3], 2), np.uint16)
    pairs = tokens // 2
    tail[0, 0, :pairs] = values[block, kv, :pairs]
    if tokens % 2 > 0:
        tail[0, 0, pairs, :, 0] = values[block, kv, pairs, :, 0]
    return tail


@compiled()
def _add_values(scores, place, tokens, values, block, kv, sums):
    """sums[line] += the first `tokens` values of one block, weighed by scores[line, place:]. Mutates sums."""
    lines, head_dim = sums.shape
    length, start = scores.shape[1], (np.int64(block) * values.shape[1] + kv) * BLOCK_TOKENS * head_dim
    places, each = np.empty(_MOST_VECTORS, np.int64), 2 if values.ndim == 5 else 1
    taken_tokens = (tokens + each - 1) // each * each
    whole = head_dim - head_dim % LANES
    line = 0
    while line < lines:
        left = lines - line
        size = 6 if left >= 6 else 3 if left >= 3 else 1
        weights, d = line * length + place, 0
        while d < whole:
            taken = _VECTORS if d + _VECTORS * LANES <= whole else 1
            for v in range(taken):
                places[v] = start + (d + v * LANES) * each
            to = line * head_dim + d
            if size == 6:
                if taken > 1:
                    _values_6_n(scores, weights, length, values, places, head_dim, taken_tokens, sums, to, head_dim)
                else:
                    _values_6_1(scores, weights, length, values, places, head_dim, taken_tokens, sums, to, head_dim)
            elif size == 3:
                if taken > 1:
                    _values_3_n(scores, weights, length, values, places, head_dim, taken_tokens, sums, to, head_dim)
                else:
                    _values_3_1(scores, weights, length, values, places, head_dim, taken_tokens, sums, to, head_dim)
            elif taken > 1:
                _values_1_n(scores, weights, length, values, places, head_dim, taken_tokens, sums, to, head_dim)
            else:
                _values_1_1(scores, weights, length, values, places, head_dim, taken_tokens, sums, to, head_dim)
            d += taken * LANES
        line += size
    for line in range(lines if whole < head_dim else 0):
        for t in range(tokens):
            for d in range(whole, head_dim):
                sums[line, d] = sums[line, d] + scores[line, place + t] * _value(values, block, kv, t, d)


@compiled()
def _weigh(scores, line, first, last, softcap, lanes):
    """Turns a line of scores into softmax's numerators, 0 outside first..last; returns their sum.

    A line is whole blocks. `lanes` is room for a block's worth of running sums.
    """
    end = scores.shape[1]
    if softcap > 0.0:
        for j in range(end):
            scores[line, j] = softcap * np.float32(math.tanh(scores[line, j] / softcap))
    for j in range(first):
        scores[line, j] = -np.float32(np.inf)
    for j in range(last + 1, end):
        scores[line, j] = -np.float32(np.inf)
    for j in range(BLOCK_TOKENS):
        lanes[j] = -np.float32(np.inf)
    for place in range(0, end, BLOCK_TOKENS):
        for j in range(BLOCK_TOKENS):
            lanes[j] = max(lanes[j], scores[line, place + j])
    top = lanes[0]
    for j in range(1, BLOCK_TOKENS):
        top = max(top, lanes[j])
    for j in range(end):
        scores[line, j] = exp(scores[line, j] - top)
    for j in range(first):
        scores[line, j] = np.float32(0.0)
    for j in range(last + 1, end):
        scores[line, j] = np.float32(0.0)
    for j in range(BLOCK_TOKENS):
        lanes[j] = np.float32(0.0)
    for place in range(0, end, BLOCK_TOKENS):
        for j in range(BLOCK_TOKENS):
            lanes[j] = lanes[j] + scores[line, place + j]
    total = np.float32(0.0)
    for j in range(BLOCK_TOKENS):
        total = total + lanes[j]
    return total


@compiled()
def _attend_tile(qkv, out, keys, values, tables, sequence, row, rows, start, kv, group, scale, window, softcap):
    """One key head of up to `TILE_ROWS` rows of a sequence, the first at position `start`."""
    head_dim, lines, ends = values.shape[3], rows * group, start + rows
    first_block = max(0, start - window + 1) // BLOCK_TOKENS if window > 0 else 0
    blocks = (ends + BLOCK_TOKENS - 1) // BLOCK_TOKENS - first_block
    begin = first_block * BLOCK_TOKENS
    queries, sums = np.empty((lines, head_dim), np.float32), np.zeros((lines, head_dim), np.float32)
    scores = np.zeros((lines, blocks * BLOCK_TOKENS), np.float32)
    lanes, totals = np.empty(BLOCK_TOKENS, np.float32), np.empty(lines, np.float32)
    for line in range(lines):
        at = (kv * group + line % group) * head_dim
        for d in range(head_dim):
            queries[line, d] = qkv[row + line // group, at + d] * scale
    _score(queries, keys, tables, sequence, first_block, (ends - begin + LANES - 1) // LANES, kv, scores)
    for line in range(lines):
        last = start + line // group
        first = max(begin, last - window + 1) if window > 0 else 0
        totals[line] = _weigh(scores, line, first - begin, last - begin, softcap, lanes)
    for b in range(blocks):
        tokens = min(BLOCK_TOKENS, ends - begin - b * BLOCK_TOKENS)  # what lies behind was never written
        block = np.int64(tables[sequence, first_block + b])
        if values.ndim == 5 and tokens % 2 > 0:
            _add_values(scores, b * BLOCK_TOKENS, tokens, begin_of_block(values, block, kv, tokens), 0, 0, sums)
        else:
            _add_values(scores, b * BLOCK_TOKENS, tokens, values, block, kv, sums)
    for line in range(lines):
        at, share = (kv * group + line % group) * head_dim, np.float32(1.0) / totals[line]
        for d in range(head_dim):
            out[row + line // group, at + d] = sums[line, d] * share


@compiled(parallel=True)
def attend(qkv, out, keys, values, tables, tiles, heads, scale, window, softcap):
    """Causal grouped-query attention of packed rows over their sequences' blocks; writes all of `out`.

    qkv: fp32 [rows, (heads + 2 * kv_heads) * head_dim], queries rotated. out: fp32 [rows, heads * head_dim].
    keys: fp32 [blocks, kv_heads, head_dim, BLOCK_TOKENS]; values: fp32 [blocks, kv_heads, BLOCK_TOKENS, head_dim]; or
    both the bits of bf16 as `Pages` has them, which are widened: the arithmetic is fp32 either way.
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
    kv_heads, head_dim = keys.shape[1], values.shape[3]
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
            if keys.ndim == 5:
                for d in range(head_dim):
                    keys[block, kv, d // 2, slot, d % 2] = rounded(qkv[row, key_at + d])
                    values[block, kv, slot // 2, d, slot % 2] = rounded(qkv[row, value_at + d])
            else:
                for d in range(head_dim):
                    keys[block, kv, d, slot] = qkv[row, key_at + d]
                    values[block, kv, slot, d] = qkv[row, value_at + d]
