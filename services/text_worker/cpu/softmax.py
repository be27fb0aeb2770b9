"""Softmax's numerators of a line of scores, in two passes that keep everything in registers.

Numba would take a pass for each of mask, maximum, exponential, sum and rounding; so this is LLVM IR, vectors of 16. The
order of a sum depends on the places in the line alone, and what is masked adds nothing to it.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from services.text_worker.cpu.exponential import TERMS
from services.text_worker.cpu.tiles import LANES

_NUMBERS, _WORDS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.IntType(32), LANES)
_HALVES = ir.VectorType(ir.IntType(16), LANES)


@intrinsic
def numerators(context, scores, at, weights, to, count, first, last):
    """weights[to + j] = e**(scores[at + j] - the greatest) in bf16 for first <= j <= last, else 0, j < count.

    Returns the sum in fp32 before rounding, float32. scores: fp32; weights: uint16, mutated; both contiguous and
    reached by offsets without a check of bounds. count: a multiple of 16. A score that is no number gives such a sum.
    """
    signature = types.float32(scores, at, weights, to, count, first, last)

    def build(context, builder, signature, arguments):
        return _build(context, builder, signature, arguments)

    return signature, build


def _number(value):
    return ir.Constant(_NUMBERS, [float(np.float32(value))] * LANES)


def _word(value):
    return ir.Constant(_WORDS, [value] * LANES)


def _spread(builder, word):
    """A 64-bit number in all lanes, as 32 bits."""
    lane = builder.insert_element(
        ir.Constant(_WORDS, ir.Undefined), builder.trunc(word, ir.IntType(32)), ir.IntType(32)(0)
    )
    return builder.shuffle_vector(lane, lane, _word(0))


def _all_lanes(builder, vector, combine):
    """Every lane combined with every other, in one fixed order, in all lanes."""
    for step in (8, 4, 2, 1):
        swapped = ir.Constant(_WORDS, [lane ^ step for lane in range(LANES)])
        vector = combine(vector, builder.shuffle_vector(vector, vector, swapped))
    return vector


def _exponential(builder, x):
    """See `exponential.exp`, for x <= 0; what is not a number stays so."""
    log2e, *terms = TERMS
    kind = ir.FunctionType(_NUMBERS, [_NUMBERS] * 3)
    fused = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
    whole = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_NUMBERS, [_NUMBERS]), f"llvm.rint.v{LANES}f32"
    )
    y = builder.fmul(x, _number(log2e))
    y = builder.select(builder.fcmp_ordered("<", y, _number(-126.0)), _number(-126.0), y)
    n = builder.call(whole, [y])
    f, power = builder.fsub(y, n), _number(terms[-1])
    for term in (*reversed(terms[:-1]), 1.0):
        power = builder.call(fused, [power, f, _number(term)])
    scale = builder.shl(builder.add(builder.fptosi(n, _WORDS), _word(127)), _word(23))
    return builder.fmul(power, builder.bitcast(scale, _NUMBERS))


def _rounded(builder, numbers):
    """See `bf16.rounded`."""
    bits = builder.bitcast(numbers, _WORDS)
    even = builder.and_(builder.lshr(bits, _word(16)), _word(1))
    bits = builder.add(builder.add(bits, _word(0x7FFF)), even)
    return builder.trunc(builder.lshr(bits, _word(16)), _HALVES)


def _build(context, builder, signature, arguments):
    long = ir.IntType(64)
    _, at, _, to, count, first, last = arguments
    scores, weights = (context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 2))
    scores, weights = builder.gep(scores, [at]), builder.gep(weights, [to])
    lowest, highest = _spread(builder, first), _spread(builder, last)
    top, total = cgutils.alloca_once(builder, _NUMBERS), cgutils.alloca_once(builder, _NUMBERS)
    builder.store(_number(-np.inf), top)
    builder.store(_number(0.0), total)
    vectors = builder.udiv(count, long(LANES))

    def read(index):
        """(where the vector begins, its scores, which of them count)"""
        place = builder.mul(index, long(LANES))
        lanes = builder.add(_spread(builder, place), ir.Constant(_WORDS, list(range(LANES))))
        inside = builder.and_(builder.icmp_signed(">=", lanes, lowest), builder.icmp_signed("<=", lanes, highest))
        found = builder.load(builder.bitcast(builder.gep(scores, [place]), _NUMBERS.as_pointer()), align=4)
        return place, found, inside

    def greater(a, b):
        return builder.select(builder.fcmp_ordered(">", a, b), a, b)

    with cgutils.for_range(builder, vectors) as loop:
        _, found, inside = read(loop.index)
        builder.store(greater(builder.select(inside, found, _number(-np.inf)), builder.load(top)), top)
    most = _all_lanes(builder, builder.load(top), greater)
    with cgutils.for_range(builder, vectors) as loop:
        place, found, inside = read(loop.index)
        power = builder.select(inside, _exponential(builder, builder.fsub(found, most)), _number(0.0))
        builder.store(builder.fadd(builder.load(total), power), total)
        out = builder.bitcast(builder.gep(weights, [place]), _HALVES.as_pointer())
        builder.store(_rounded(builder, power), out, align=2)
    sums = _all_lanes(builder, builder.load(total), builder.fadd)
    return builder.extract_element(sums, ir.IntType(32)(0))
