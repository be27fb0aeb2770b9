"""What lies between two matrix products, row by row in one pass: norms, sums, gates, and rows in 8 or 16 bits.

A row in 8 bits is round(x * 127 / max |x|) + 128 as an unsigned byte, with its scale max |x| / 127: see `int8_gemm`.
A row in 16 bits is the nearest bf16, in the order of memory of `bf16_amx`. Which of them `packed` is, its dimensions
say; where it is empty nothing is packed. Each row is computed alone, so no result depends on the batch.
"""

import numpy as np
from numba import prange

from services.text_worker.cpu.bf16 import rounded
from services.text_worker.cpu.compiled import compiled
from services.text_worker.cpu.exponential import exp


@compiled()
def _pack_row(rows, row, packed, scales):
    if packed.size == 0:
        return
    if packed.ndim == 4:  # settled when this is compiled
        _round_row(rows, row, packed)
    else:
        _quantise_row(rows, row, packed, scales)


@compiled()
def _round_row(rows, row, packed):
    step, width = packed.shape[3], rows.shape[1]
    block, line, whole = row // packed.shape[2], row % packed.shape[2], width // step
    for s in range(whole):
        for i in range(step):
            packed[block, s, line, i] = rounded(rows[row, s * step + i])
    for i in range(width - whole * step):
        packed[block, whole, line, i] = rounded(rows[row, whole * step + i])


@compiled()
def _quantise_row(rows, row, packed, scales):
    width, lanes = rows.shape[1], np.zeros(16, np.float32)
    whole = width - width % 16
    for i in range(0, whole, 16):
        for lane in range(16):
            lanes[lane] = max(lanes[lane], abs(rows[row, i + lane]))
    most = np.float32(0.0)
    for lane in range(16):
        most = max(most, lanes[lane])
    for i in range(whole, width):
        most = max(most, abs(rows[row, i]))
    scales[row] = most / np.float32(127.0)
    factor = np.float32(127.0) / most if most > 0.0 else np.float32(0.0)
    for i in range(rows.shape[1]):
        packed[row, i] = np.uint8(np.int32(np.rint(rows[row, i] * factor)) + np.int32(128))


@compiled()
def _factor(rows, row, eps, lanes):
    """RMSNorm's factor of a row; 16 running sums, so that the loop is vectors in one fixed order."""
    width = rows.shape[1]
    for lane in range(16):
        lanes[lane] = np.float32(0.0)
    whole = width - width % 16
    for i in range(0, whole, 16):
        for lane in range(16):
            lanes[lane] = lanes[lane] + rows[row, i + lane] * rows[row, i + lane]
    total = np.float32(0.0)
    for lane in range(16):
        total = total + lanes[lane]
    for i in range(whole, width):
        total = total + rows[row, i] * rows[row, i]
    return np.float32(1.0) / np.sqrt(total / np.float32(width) + eps)


@compiled(parallel=True)
def norm(x, weight, eps, out, packed, scales):
    """out = RMSNorm(x) * weight, fp32 [rows, width]; and packed, scales where packed has columns."""
    for row in prange(len(x)):
        factor = _factor(x, row, eps, np.empty(16, np.float32))
        for i in range(x.shape[1]):
            out[row, i] = x[row, i] * factor * weight[i]
        _pack_row(out, row, packed, scales)


@compiled(parallel=True)
def add_norm(hidden, branch, post, weight, eps, out, packed, scales):
    """hidden += branch, normed by `post` where it has elements; then as `norm`. Mutates hidden."""
    for row in prange(len(hidden)):
        lanes = np.empty(16, np.float32)
        if len(post) > 0:
            factor = _factor(branch, row, eps, lanes)
            for i in range(hidden.shape[1]):
                hidden[row, i] = hidden[row, i] + branch[row, i] * factor * post[i]
        else:
            for i in range(hidden.shape[1]):
                hidden[row, i] = hidden[row, i] + branch[row, i]
        factor = _factor(hidden, row, eps, lanes)
        for i in range(hidden.shape[1]):
            out[row, i] = hidden[row, i] * factor * weight[i]
        _pack_row(out, row, packed, scales)


@compiled(parallel=True)
def gate(gate_up, gelu, out, packed, scales):
    """out = activation(gate) * up for gate_up [rows, 2 * width]: silu, or gelu by tanh, which are both x * sigmoid."""
    width = gate_up.shape[1] // 2
    for row in prange(len(gate_up)):
        if gelu:
            for i in range(width):
                x = gate_up[row, i]
                steep = np.float32(1.5957691216057308) * (x + np.float32(0.044715) * x * x * x)
                out[row, i] = x / (np.float32(1.0) + exp(-steep)) * gate_up[row, width + i]
        else:
            for i in range(width):
                x = gate_up[row, i]
                out[row, i] = x / (np.float32(1.0) + exp(-x)) * gate_up[row, width + i]
        _pack_row(out, row, packed, scales)


@compiled(parallel=True)
def pack_rows(rows, packed, scales):
    """fp32 [rows, width] in fewer bits.

    packed: uint8 [rows, width up to a multiple of 4], with scales fp32 [rows]; or as `bf16_amx.empty_rows`, without.
    """
    for row in prange(len(rows)):
        _pack_row(rows, row, packed, scales)
