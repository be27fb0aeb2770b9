"""What `int8_gemm` multiplies with on CPUs with AMX: tiles of 16 rows of 64 bytes, multiplied 16 x 16 x 64 at a time.

`PackedInt8.weight` has the order that these instructions want: 16 quads of a group are 16 lines of a tile, 16 columns
wide. Numba cannot express the instructions: `_block` builds the loop over the inner length as assembly.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from services.text_worker.cpu import amx
from services.text_worker.cpu.amx import LINES

COLUMNS = 64
INNER = 64
"""Inner lengths are multiples of it: bytes of a tile's line."""
FEWEST_ROWS = 3
"""Fewer rows are as quick without, and are not worth setting tiles up."""


def has_amx() -> bool:
    """Whether this CPU multiplies tiles of bytes and this process may."""
    return amx.permitted("amx-int8")


def _block(row_tiles: int, column_tiles: int) -> Any:
    """An intrinsic: sums = x[row : row + 16 row_tiles] . 16 column_tiles columns of a group, from `column` on.

    x: uint8 [rows, inner]; weight: int8 [groups, inner / 4, COLUMNS * 4]; sums: int32, line by line of COLUMNS.
    Needs `configure` before, on the same thread.
    """

    @intrinsic
    def block(context, x, row, weight, group, column, sums):
        signature = types.void(x, row, weight, group, column, sums)

        def build(context, builder, signature, arguments):
            _build(context, builder, signature, arguments, row_tiles, column_tiles)
            return context.get_dummy_value()

        return signature, build

    return block


def _loop(row_tiles: int, column_tiles: int) -> str:
    """Assembly. $0 x, $1 weight, $2 tiles to go, all of which change; $6 x's stride, $7 256, $8 sums, $9 16 strides."""
    sums = [[r * column_tiles + c for c in range(column_tiles)] for r in range(row_tiles)]
    rows = [4, 5][:row_tiles]
    free = [6, 7] if row_tiles == 2 else [5, 6, 7]
    lines = [f"tilezero %tmm{number}" for line in sums for number in line]
    lines.append("1:")
    lines.append("tileloadd ($0,$6,1), %tmm4")
    if row_tiles == 2:
        lines += ["addq $9, $0", "tileloadd ($0,$6,1), %tmm5", "subq $9, $0"]
    for c in range(column_tiles):
        held = free[c % len(free)]
        lines.append(f"tileloadd {64 * c}($1,$7,1), %tmm{held}")
        lines += [f"tdpbusd %tmm{held}, %tmm{rows[r]}, %tmm{sums[r][c]}" for r in range(row_tiles)]
    lines += ["addq $$64, $0", "addq $$4096, $1", "decq $2", "jnz 1b"]
    lines += [
        f"tilestored %tmm{sums[r][c]}, {4 * (r * LINES * COLUMNS + c * LINES)}($8,$7,1)"
        for r in range(row_tiles)
        for c in range(column_tiles)
    ]
    return "\n".join(lines)


def _build(context, builder, signature, arguments, row_tiles, column_tiles):
    x, weight, sums = (context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2, 5))
    long, byte = ir.IntType(64), ir.IntType(8).as_pointer()
    _, row, _, group, column, _ = arguments
    stride, quads = cgutils.unpack_tuple(builder, x.shape)[1], cgutils.unpack_tuple(builder, weight.shape)[1]
    begin = builder.gep(builder.bitcast(x.data, byte), [builder.mul(row, stride)])
    offset = builder.add(builder.mul(group, builder.mul(quads, long(COLUMNS * 4))), builder.mul(column, long(4)))
    panel = builder.gep(builder.bitcast(weight.data, byte), [offset])
    out = builder.gep(builder.bitcast(sums.data, byte), [builder.mul(column, long(4))])
    begin, panel, out = (builder.ptrtoint(pointer, long) for pointer in (begin, panel, out))
    kind = ir.FunctionType(ir.LiteralStructType([long] * 3), [long] * 7)
    constraints = "=&r,=&r,=&r,0,1,2,r,r,r,r,~{memory},~{flags}"
    given = [begin, panel, builder.udiv(stride, long(INNER)), stride, long(COLUMNS * 4), out]
    given.append(builder.mul(stride, long(LINES)))
    builder.asm(kind, _loop(row_tiles, column_tiles), constraints, given, True)


wide, tall = _block(1, 4), _block(2, 2)
"""For 16 rows and a whole group of columns; for 32 rows and half of one."""
