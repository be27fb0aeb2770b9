"""Tokens drawn from rows of logits. Each row is computed alone and in one order, so no token depends on the batch.

What a filter keeps is found without sorting a vocabulary: numbers are counted and summed up by the upper bits of their
floats, which rise as they do, and only those that share a filter's border are sorted.
"""

import numpy as np
from numba import prange

from services.text_worker.cpu.bf16 import bits_of
from services.text_worker.cpu.compiled import compiled
from services.text_worker.cpu.exponential import exp

BLOCK = 256
"""Tokens that are summed up together."""
_SHIFT = np.uint32(18)
_BINS = 0x3F800000 // 2**18 + 1
"""Of weights up to 1: 32 for each power of two."""
_LEAST_EXPONENT = np.float32(-87.0)
_SMALLEST = np.finfo(np.float32).smallest_subnormal


@compiled(parallel=True)
def draw_rows(logits, rows, largest, temperatures, top_k, top_p, min_p, noise, tokens):
    """tokens[i] = the token that noise[i] in [0, 1) draws from logits[rows[i]]; fp32 [any, vocab]. Mutates tokens.

    largest: fp32, of each of these rows, finite. top_k: 1 to vocab, which keeps all; top_p: 1 keeps all; min_p: 0 does.
    The order is temperature, top-k, top-p over what that left, min-p; ties at a border are all kept. The token is the
    first, in the order of ids, at which the cumulated weight exceeds the noise's share of all.
    """
    for i in prange(len(rows)):
        weights = np.empty(logits.shape[1], np.float32)
        for j in range(len(weights)):
            power = (logits[rows[i], j] - largest[i]) / temperatures[i]
            weights[j] = exp(power) if power > _LEAST_EXPONENT else np.float32(0.0)
        tokens[i] = _place(weights, least_kept(weights, top_k[i], top_p[i], min_p[i]), noise[i])


@compiled()
def least_kept(weights, top_k, top_p, min_p):
    """The smallest of weights fp32 [vocab], from 0 to 1, that every filter keeps; over 0. See `draw_rows`."""
    least = max(_SMALLEST, min_p)
    if top_k >= len(weights) and top_p >= 1.0:
        return least
    counts, sums = np.zeros(_BINS, np.int64), np.zeros(_BINS, np.float64)
    total = 0.0
    for j in range(len(weights)):
        place = bits_of(weights[j]) >> _SHIFT
        counts[place] += 1
        sums[place] += weights[j]
        total += weights[j]
    if top_k < len(weights):
        kth, total = _kth(weights, counts, sums, top_k)
        least = max(least, kth)
    if top_p < 1.0:
        least = max(least, _nucleus(weights, sums, top_p * total))
    return least


@compiled()
def _kth(weights, counts, sums, k):
    """The k-th largest weight, and the sum of all that are as large."""
    place, before, total = _BINS - 1, 0, 0.0
    while before + counts[place] < k:
        before += counts[place]
        total += sums[place]
        place -= 1
    border = _in_bin(weights, place)
    kth = border[k - before - 1]
    for weight in border:
        if weight >= kth:
            total += weight
    return kth, total


@compiled()
def _nucleus(weights, sums, wanted):
    """The largest weight up to which the largest reach the sum `wanted`; 0 where rounding lets them miss it."""
    place, before = _BINS - 1, 0.0
    while place > 0 and before + sums[place] < wanted:
        before += sums[place]
        place -= 1
    for weight in _in_bin(weights, place):
        before += weight
        if before >= wanted:
            return weight
    return np.float32(0.0)


@compiled()
def _in_bin(weights, place):
    """The weights of one bin, falling."""
    found, count = np.empty(len(weights), np.float32), 0
    for weight in weights:
        if bits_of(weight) >> _SHIFT == place:
            found[count] = weight
            count += 1
    return np.sort(found[:count])[::-1]


@compiled()
def _place(weights, least, noise):
    """The token; first its block, then its place inside."""
    blocks = (len(weights) + BLOCK - 1) // BLOCK
    sums, total = np.empty(blocks, np.float64), 0.0
    for block in range(blocks):
        sums[block] = _sum_kept(weights[block * BLOCK : (block + 1) * BLOCK], least)
        total += sums[block]
    wanted, before, chosen = noise * total, 0.0, 0
    for block in range(blocks):
        if sums[block] > 0.0:
            chosen = block  # and stays it, where rounding lets no later one exceed the share
            if before + sums[block] > wanted:
                break
            before += sums[block]
    inside, token = 0.0, chosen * BLOCK
    for j in range(chosen * BLOCK, min(len(weights), (chosen + 1) * BLOCK)):
        if weights[j] >= least:
            token = j
            inside += weights[j]
            if before + inside > wanted:
                break
    return token


@compiled()
def _sum_kept(weights, least):
    lanes, whole = np.zeros(16, np.float64), len(weights) - len(weights) % 16
    for i in range(0, whole, 16):
        for lane in range(16):
            lanes[lane] += weights[i + lane] if weights[i + lane] >= least else np.float32(0.0)
    total = 0.0
    for lane in range(16):
        total += lanes[lane]
    for i in range(whole, len(weights)):
        total += weights[i] if weights[i] >= least else np.float32(0.0)
    return total
