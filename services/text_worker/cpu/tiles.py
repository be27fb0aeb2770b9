"""A few rows times a panel of vectors, summed in registers: what attention's two products are made of.

c[r, 16 v + j] += sum_k a[r, k] * b_v[k, j]    for rows r, vectors v of 16 numbers, and k in order

Numba leaves such sums in memory, so `tile` builds the loop as LLVM IR: fused multiply-adds over vectors, which every
CPU gets in its own width. Each sum is one chain in the order of k, whatever the tile's shape, so a row's bits do not
depend on the rows beside it.
"""

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
"""Numbers in a vector."""
WIDE = bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))
"""Whether registers hold whole vectors, and there are 32 of them. Else they hold half of one and there are 16."""


def tile(rows: int, vectors: int) -> Any:
    """An intrinsic (a, a_at, a_step, b, places, b_step, count, c, c_at, c_step): the module's sum for `count` k.

    a, b, c: contiguous fp32 arrays, reached by offsets in elements without a check of bounds. b may be uint16 instead,
    the bits of bf16 in pairs of lines, each number of line k beside that of line k + 1 (see `Pages`); `count` is even
    then. Row r of `a` begins at a_at + r * a_step; vector v of `b` at places[v], int64, and its k-th line b_step
    further each; row r of `c` at c_at + r * c_step, where its vectors lie side by side. Mutates c.
    """

    @intrinsic
    def run(context, a, a_at, a_step, b, places, b_step, count, c, c_at, c_step):
        signature = types.void(a, a_at, a_step, b, places, b_step, count, c, c_at, c_step)

        def build(context, builder, signature, arguments):
            _build(context, builder, signature, arguments, rows, vectors)
            return context.get_dummy_value()

        return signature, build

    return run


def _build(context, builder, signature, arguments, rows, vectors):
    number, word, long = ir.FloatType(), ir.IntType(32), ir.IntType(64)
    vector = ir.VectorType(number, LANES)
    _, a_at, a_step, _, _, b_step, count, _, c_at, c_step = arguments
    read_lines, each = (_read_pair, 2) if signature.args[3].dtype == types.uint16 else (_read_line, 1)
    a, b, places, c = (context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 3, 4, 7))
    panels = [builder.gep(b, [builder.load(builder.gep(places, [long(v)]))]) for v in range(vectors)]
    lines = [builder.gep(a, [builder.add(a_at, builder.mul(a_step, long(r)))]) for r in range(rows)]
    ends = [
        [
            builder.bitcast(
                builder.gep(c, [builder.add(c_at, builder.add(builder.mul(c_step, long(r)), long(v * LANES)))]),
                vector.as_pointer(),
            )
            for v in range(vectors)
        ]
        for r in range(rows)
    ]
    sums = [[cgutils.alloca_once(builder, vector) for _ in range(vectors)] for _ in range(rows)]
    for r in range(rows):
        for v in range(vectors):
            builder.store(builder.load(ends[r][v], align=4), sums[r][v])
    kind = ir.FunctionType(vector, [vector, vector, vector])
    fused = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
    with cgutils.for_range(builder, builder.udiv(count, long(each))) as loop:
        k = builder.mul(loop.index, long(each))
        far = builder.mul(k, b_step)
        panels_lines = [read_lines(builder, builder.gep(panel, [far])) for panel in panels]  # [vectors][each]
        for line in range(each):
            for r in range(rows):
                one = builder.load(builder.gep(lines[r], [builder.add(k, long(line))]))
                lane = builder.insert_element(ir.Constant(vector, ir.Undefined), one, word(0))
                spread = builder.shuffle_vector(lane, lane, ir.Constant(ir.VectorType(word, LANES), [0] * LANES))
                for v in range(vectors):
                    total = builder.call(fused, [spread, panels_lines[v][line], builder.load(sums[r][v])])
                    builder.store(total, sums[r][v])
    for r in range(rows):
        for v in range(vectors):
            builder.store(builder.load(sums[r][v]), ends[r][v], align=4)


def _read_line(builder, place):
    """One vector of fp32."""
    return [builder.load(builder.bitcast(place, ir.VectorType(ir.FloatType(), LANES).as_pointer()), align=4)]


def _read_pair(builder, place):
    """Two vectors out of one of pairs: bf16 is the upper half of fp32."""
    words = ir.VectorType(ir.IntType(32), LANES)
    pairs = builder.load(builder.bitcast(place, words.as_pointer()), align=4)
    first = builder.shl(pairs, ir.Constant(words, [16] * LANES))
    second = builder.and_(pairs, ir.Constant(words, [0xFFFF0000] * LANES))
    return [builder.bitcast(each, ir.VectorType(ir.FloatType(), LANES)) for each in (first, second)]
