"""Rows of 8-bit activations times an 8-bit matrix, exact in 32-bit sums: the one product that decides decode speed.

out[m, n] = (sum_k (x[m, k] - 128) * w[n, k]) * row_scale[m] * column_scale[n] + bias[n]

Activations are stored 128 higher, as unsigned bytes, because that is what the instruction multiplies with signed
ones; `packed.offsets` takes the surplus off again. Sums are whole numbers, so every way to compute them gives the same
bits: a row's result does not depend on the rows beside it, on threads, or on the CPU.

On a CPU with AVX-512 VNNI a tile of rows by 64 columns is kept in registers and fed by `vpdpbusd`, which numba cannot
express: `_vnni_tile` builds it as LLVM IR. With AMX (`int8_amx`) three rows and more go through its tiles. Elsewhere
`_plain_tile`, the same in plain numba, takes its place.
"""

from dataclasses import dataclass
from typing import Any

import llvmlite.binding
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from services.text_worker.cpu import amx, int8_amx
from services.text_worker.cpu.amx import configure, release
from services.text_worker.cpu.compiled import compiled

COLUMNS = 64
"""Columns of a tile: four vectors of 16 sums."""
TILE_ROWS = 6
"""4 x 6 sums, 4 columns and a row's bytes fill the 32 registers."""
MAX_INNER = 2**31 // (255 * 128)
"""Longer rows could overflow a 32-bit sum."""

llvmlite.binding.initialize_native_asmparser()  # for the one instruction that is given as assembly

Int8 = npt.NDArray[np.int8]
Float = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PackedInt8:
    """A matrix [columns, inner] in 8 bits with a scale a column, in the order in which tiles read it."""

    weight: Int8  # [column groups, inner / 4, COLUMNS * 4]: four neighbours of inner for each column
    scales: Float  # [column groups * COLUMNS]
    offsets: npt.NDArray[np.int32]  # [column groups * COLUMNS]: 128 times the sum of a column
    columns: int
    inner: int


def pack(quantised: Int8, scales: Float) -> PackedInt8:
    """quantised: [columns, inner]; scales: [columns]. Raises ValueError for an inner length over `MAX_INNER`."""
    columns, inner = quantised.shape
    if inner > MAX_INNER:
        raise ValueError(f"inner length {inner} could overflow 32-bit sums; at most {MAX_INNER}")
    groups, quads = -(-columns // COLUMNS), -(-inner // 4)
    whole = np.zeros((groups * COLUMNS, quads * 4), np.int8)
    whole[:columns, :inner] = quantised
    tiled = whole.reshape(groups, COLUMNS, quads, 4).transpose(0, 2, 1, 3)
    padded = np.zeros(groups * COLUMNS, np.float32)
    padded[:columns] = scales
    offsets = whole.astype(np.int32).sum(axis=1, dtype=np.int32) * 128
    weight = amx.aligned((groups, quads, COLUMNS * 4), np.int8)
    weight.reshape(tiled.shape)[:] = tiled
    return PackedInt8(weight, padded, offsets, columns, inner)


def has_vnni() -> bool:
    """Whether this CPU multiplies bytes in 512-bit vectors."""
    features = llvmlite.binding.get_host_cpu_features()
    return bool(features.get("avx512vnni") and features.get("avx512bw") and features.get("avx512vl"))


def _vnni_tile(rows: int) -> Any:
    """An intrinsic: sums[:rows * COLUMNS] = x[row:row + rows] . one group of columns, sums as 32-bit numbers."""

    @intrinsic
    def tile(context, x, row, weight, group, sums):
        signature = types.void(x, row, weight, group, sums)

        def build(context, builder, signature, arguments):
            _build_tile(context, builder, signature, arguments, rows)
            return context.get_dummy_value()

        return signature, build

    return tile


def _build_tile(context, builder, signature, arguments, rows):
    """IR of the loop over quads of inner: load four vectors of weights, spread each row's four bytes, multiply-add."""
    x, weight, sums = (context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2, 4))
    word, long = ir.IntType(32), ir.IntType(64)
    vector = ir.VectorType(word, 16)
    row = builder.sext(arguments[1], long) if arguments[1].type != long else arguments[1]
    group = builder.sext(arguments[3], long) if arguments[3].type != long else arguments[3]
    stride, quads = cgutils.unpack_tuple(builder, x.shape)[1], cgutils.unpack_tuple(builder, weight.shape)[1]
    first = builder.bitcast(builder.gep(x.data, [builder.mul(row, stride)]), word.as_pointer())
    row_words = builder.udiv(stride, long(4))
    panel = builder.bitcast(
        builder.gep(weight.data, [builder.mul(group, builder.mul(quads, long(COLUMNS * 4)))]), vector.as_pointer()
    )
    totals = [[cgutils.alloca_once(builder, vector) for _ in range(4)] for _ in range(rows)]
    for total in (total for line in totals for total in line):
        builder.store(ir.Constant(vector, [0] * 16), total)
    kind = ir.FunctionType(vector, [vector, vector, vector])
    with cgutils.for_range(builder, quads) as loop:
        at = builder.mul(loop.index, long(4))
        columns = [builder.load(builder.gep(panel, [builder.add(at, long(v))]), align=1) for v in range(4)]
        for r in range(rows):
            place = builder.add(builder.mul(row_words, long(r)), loop.index)
            byte4 = builder.load(builder.gep(first, [place]), align=1)
            lane = builder.insert_element(ir.Constant(vector, ir.Undefined), byte4, word(0))
            spread = builder.shuffle_vector(lane, lane, ir.Constant(vector, [0] * 16))
            for v in range(4):
                total = builder.load(totals[r][v])
                # As assembly: the intrinsic's operand types differ between versions of LLVM.
                total = builder.asm(kind, "vpdpbusd $2, $1, $0", "=v,v,v,0", [spread, columns[v], total], False)
                builder.store(total, totals[r][v])
    out = builder.bitcast(sums.data, vector.as_pointer())
    for index, total in enumerate(total for line in totals for total in line):
        builder.store(builder.load(total), builder.gep(out, [long(index)]), align=4)


@compiled()
def _plain_tile(x, row, rows, weight, group, sums):
    """The same for any CPU: whole numbers, so the same sums."""
    for place in range(rows * COLUMNS):
        sums[place] = np.int32(0)
    for quad in range(weight.shape[1]):
        for r in range(rows):
            x0, x1 = np.int32(x[row + r, 4 * quad]), np.int32(x[row + r, 4 * quad + 1])
            x2, x3 = np.int32(x[row + r, 4 * quad + 2]), np.int32(x[row + r, 4 * quad + 3])
            for n in range(COLUMNS):
                total = x0 * np.int32(weight[group, quad, 4 * n]) + x1 * np.int32(weight[group, quad, 4 * n + 1])
                total += x2 * np.int32(weight[group, quad, 4 * n + 2]) + x3 * np.int32(weight[group, quad, 4 * n + 3])
                sums[r * COLUMNS + n] += total


@compiled()
def _finish(sums, row, rows, group, row_scales, scales, offsets, bias, out):
    """Whole sums to numbers: offset off, both scales and the bias on."""
    first = group * COLUMNS
    columns = min(COLUMNS, out.shape[1] - first)
    for r in range(rows):
        for n in range(columns):
            whole = np.float32(sums[r * COLUMNS + n] - offsets[first + n])
            out[row + r, first + n] = whole * scales[first + n] * row_scales[row + r]
    if len(bias) > 0:
        for r in range(rows):
            for n in range(columns):
                out[row + r, first + n] += bias[first + n]


@compiled(parallel=True)
def plain_product(x, row_scales, weight, scales, offsets, bias, out):
    """See `vnni_product`; for any CPU."""
    for group in prange(len(weight)):
        sums = np.empty(TILE_ROWS * COLUMNS, np.int32)
        for row in range(0, len(x), TILE_ROWS):
            rows = min(TILE_ROWS, len(x) - row)
            _plain_tile(x, row, rows, weight, group, sums)
            _finish(sums, row, rows, group, row_scales, scales, offsets, bias, out)


_amx_wide, _amx_tall, AMX_ROWS = int8_amx.wide, int8_amx.tall, amx.LINES
_tile_1, _tile_2, _tile_6 = _vnni_tile(1), _vnni_tile(2), _vnni_tile(6)


@compiled(parallel=True)
def vnni_product(x, row_scales, weight, scales, offsets, bias, out):
    """Writes out [rows, columns] fp32 as the module's formula says. Needs `has_vnni`.

    x: uint8 [rows, inner up to a multiple of 4], contiguous; row_scales: fp32 [rows]; weight, scales and offsets as in
    `PackedInt8`; bias: fp32 [columns], or empty.
    """
    for group in prange(len(weight)):
        sums = np.empty(TILE_ROWS * COLUMNS, np.int32)
        row = 0
        while row + 6 <= len(x):
            _tile_6(x, row, weight, group, sums)
            _finish(sums, row, 6, group, row_scales, scales, offsets, bias, out)
            row += 6
        while row + 2 <= len(x):
            _tile_2(x, row, weight, group, sums)
            _finish(sums, row, 2, group, row_scales, scales, offsets, bias, out)
            row += 2
        if row < len(x):
            _tile_1(x, row, weight, group, sums)
            _finish(sums, row, 1, group, row_scales, scales, offsets, bias, out)


@compiled(parallel=True)
def _amx_product(x, row_scales, weight, scales, offsets, bias, shapes, out):
    """See `vnni_product`; shapes: `amx.shapes_for(len(x))`."""
    for group in prange(len(weight)):
        sums = np.empty(2 * AMX_ROWS * COLUMNS, np.int32)
        for row in range(0, len(x), 2 * AMX_ROWS):
            rows = min(2 * AMX_ROWS, len(x) - row)
            configure(shapes, np.int64(0 if rows == 2 * AMX_ROWS else 1))
            if rows > AMX_ROWS:
                _amx_tall(x, row, weight, group, np.int64(0), sums)
                _amx_tall(x, row, weight, group, np.int64(COLUMNS // 2), sums)
            else:
                _amx_wide(x, row, weight, group, np.int64(0), sums)
            _finish(sums, row, rows, group, row_scales, scales, offsets, bias, out)
        release()


def amx_product(x, row_scales, weight, scales, offsets, bias, out):
    """See `vnni_product`; needs `int8_amx.has_amx` too."""
    if len(x) < int8_amx.FEWEST_ROWS or x.shape[1] % int8_amx.INNER:
        vnni_product(x, row_scales, weight, scales, offsets, bias, out)
    else:
        _amx_product(x, row_scales, weight, scales, offsets, bias, amx.shapes_for(len(x)), out)


def _fastest() -> Any:
    if not has_vnni():
        return plain_product
    return amx_product if int8_amx.has_amx() else vnni_product


product = _fastest()
