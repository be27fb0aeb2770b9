"""Rows of bf16 times a matrix of bf16 in fp32 sums, by AMX's tiles: 16 x 16 sums of 32 products each at a time.

out[m, n] = bias[n] + sum_k x[m, k] * w[n, k]

Each sum is one chain in the order of k, begun with the bias, whatever the number of rows: a row's bits do not depend on
the rows beside it. Numbers below 2^-126 count as 0; that is how the instruction does it.

Rows and matrix both lie in the order in which tiles read them, step by step of 32 k, and begin at a cache line: what is
read is one stream, which the CPU fetches ahead of the loop. Memory's speed is then the limit up to some 32 rows.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from services.text_worker.cpu import amx
from services.text_worker.cpu.amx import LINES, configure, release
from services.text_worker.cpu.compiled import compiled

STEP = 32
"""Numbers in a line of a tile."""
COLUMNS = ROWS = 2 * LINES
"""A block of sums is 32 x 32: 4 tiles, which leaves 4 for what is multiplied."""
_STEP_BYTES = 2 * STEP * COLUMNS
_AHEAD_BYTES = 4 * _STEP_BYTES


@dataclass(frozen=True)
class PackedBf16:
    """A matrix [columns, inner] in bf16, in the order in which tiles read it, and its bias."""

    weight: npt.NDArray[np.uint16]  # [groups, steps, 2, 16, STEP]: pairs of neighbours in k of 16 columns a line
    bias: npt.NDArray[np.float32]  # [groups * COLUMNS], zeros where there is none
    columns: int


@lru_cache(maxsize=1)
def has_amx() -> bool:
    """Whether this CPU multiplies tiles of bf16 and this process may."""
    return amx.permitted("amx-bf16")


def pack(weight: Tensor, bias: Tensor | None) -> PackedBf16:
    """weight: [columns, inner], rounded to bf16; bias: [columns]."""
    columns, inner = weight.shape
    groups, steps = -(-columns // COLUMNS), -(-inner // STEP)
    whole = np.zeros((groups * COLUMNS, steps * STEP), np.uint16)
    whole[:columns, :inner] = weight.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    pairs = whole.view(np.uint32).reshape(groups, 2, LINES, steps, LINES)  # group, tile, column, step, pair
    packed = amx.aligned((groups, steps, 2, LINES, STEP), np.uint16)
    packed.view(np.uint32)[:] = pairs.transpose(0, 3, 1, 4, 2)
    padded = amx.aligned((groups * COLUMNS,), np.float32)
    padded[:] = 0.0
    if bias is not None:
        padded[:columns] = bias.float().numpy()
    return PackedBf16(packed, padded, columns)


def empty_rows(count: int, width: int) -> npt.NDArray[np.uint16]:
    """Memory for rows as `product` reads them: [blocks, steps, ROWS, STEP], zeros behind `width`."""
    rows = amx.aligned((-(-count // ROWS), -(-width // STEP), ROWS, STEP), np.uint16)
    if width % STEP:
        rows[:, -1, :, width % STEP :] = 0
    return rows


def take(rows: npt.NDArray[np.uint16], places: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
    """Some of the rows, in the same order of memory."""
    taken, to = amx.aligned((-(-len(places) // ROWS), *rows.shape[1:]), np.uint16), np.arange(len(places))
    taken[to // ROWS, :, to % ROWS] = rows[places // ROWS, :, places % ROWS]
    return taken


def _block(row_tiles: int) -> Any:
    """An intrinsic: out[16 row_tiles rows from `row` on, 32 columns] = x . one group of columns.

    x, weight, bias: as in `product`. out: fp32 memory, written from element `place` on, `stride` elements a row. Needs
    `configure` before, on the same thread.
    """

    @intrinsic
    def block(context, x, row, weight, group, bias, out, place, stride):
        signature = types.void(x, row, weight, group, bias, out, place, stride)

        def build(context, builder, signature, arguments):
            _build(context, builder, signature, arguments, row_tiles)
            return context.get_dummy_value()

        return signature, build

    return block


def _loop(row_tiles: int) -> str:
    """Assembly. $0 x, $1 weight, $2 steps to go, $3 out, all of which change; $8 64, $9 bias, $10 0, $11 stride,
    $12 16 strides. For few rows, what some steps later need is asked for early: then memory is what is waited for."""
    tiles = [(row, column) for column in range(2) for row in range(row_tiles)]
    lines = [f"tileloadd {64 * column}($9,$10,1), %tmm{2 * row + column}" for row, column in tiles]  # 16 times one line
    lines.append("1:")
    lines += [f"tileloadd {1024 * row}($0,$8,1), %tmm{4 + row}" for row in range(row_tiles)]
    lines += [f"tileloadd {1024 * column}($1,$8,1), %tmm{6 + column}" for column in range(2)]
    share = _STEP_BYTES // len(tiles)
    for index, (row, column) in enumerate(tiles):
        lines.append(f"tdpbf16ps %tmm{6 + column}, %tmm{4 + row}, %tmm{2 * row + column}")
        if row_tiles == 1:
            ahead = range(_AHEAD_BYTES + index * share, _AHEAD_BYTES + (index + 1) * share, amx.LINE_BYTES)
            lines += [f"prefetcht0 {byte}($1)" for byte in ahead]
    lines += [f"addq $${_STEP_BYTES}, $0", f"addq $${_STEP_BYTES}, $1", "decq $2", "jnz 1b"]
    for row in range(row_tiles):
        lines += [f"tilestored %tmm{2 * row + column}, {64 * column}($3,$11,1)" for column in range(2)]
        lines.append("addq $12, $3")
    return "\n".join(lines)


def _build(context, builder, signature, arguments, row_tiles):
    x, weight, bias, out = (context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2, 4, 5))
    long = ir.IntType(64)
    _, row, _, group, _, _, place, stride = arguments
    steps = cgutils.unpack_tuple(builder, weight.shape)[1]

    def at(array, offset_bytes):
        return builder.add(builder.ptrtoint(array.data, long), offset_bytes)

    panel_bytes, stride_bytes = builder.mul(steps, long(_STEP_BYTES)), builder.mul(stride, long(4))
    begin = at(x, builder.mul(builder.udiv(row, long(ROWS)), panel_bytes))
    panel = at(weight, builder.mul(group, panel_bytes))
    first, to = at(bias, builder.mul(group, long(4 * COLUMNS))), at(out, builder.mul(place, long(4)))
    given = [begin, panel, steps, to, long(64), first, long(0), stride_bytes, builder.mul(stride_bytes, long(LINES))]
    kind = ir.FunctionType(ir.LiteralStructType([long] * 4), [long] * 9)
    constraints = "=&r,=&r,=&r,=&r,0,1,2,3,r,r,r,r,r,~{memory},~{flags}"
    builder.asm(kind, _loop(row_tiles), constraints, given, True)


_wide, _tall = _block(1), _block(2)


@compiled(parallel=True)
def _product(x, weight, bias, shapes, out):
    count, columns = out.shape
    for group in prange(len(weight)):
        first = group * COLUMNS
        whole = first + COLUMNS <= columns
        spare = np.empty((ROWS, COLUMNS), np.float32)
        for row in range(0, count, ROWS):
            left = count - row
            if row == 0 or left < ROWS:
                configure(shapes, np.int64(0 if left >= ROWS else 1))
            to, place, stride = (out, row * columns + first, columns) if whole else (spare, 0, COLUMNS)
            if left > LINES:
                _tall(x, row, weight, group, bias, to, place, stride)
            else:
                _wide(x, row, weight, group, bias, to, place, stride)
            if not whole:
                for r in range(min(left, ROWS)):
                    for n in range(columns - first):
                        out[row + r, first + n] = spare[r, n]
        release()


def product(x: npt.NDArray[np.uint16], matrix: PackedBf16, out: npt.NDArray[np.float32]) -> None:
    """Writes out [rows, columns] as the module's formula says. Needs `has_amx`.

    x: the rows in bf16 as [blocks, steps, ROWS, STEP], see `empty_rows`.
    """
    _product(x, matrix.weight, matrix.bias, amx.shapes_for(len(out)), out)
