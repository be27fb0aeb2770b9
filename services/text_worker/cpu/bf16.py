"""Numbers in 16 bits, bf16: the upper half of an fp32 number, kept as uint16 because numba and numpy do not know it."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

_HALF, _ONE, _SHIFT = np.uint32(0x7FFF), np.uint32(1), np.uint32(16)
_NO_NUMBER = np.uint32(0x7FC0)


@intrinsic
def bits_of(context: Any, number: Any) -> Any:
    """The 32 bits of an fp32 number."""

    def build(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), build


@intrinsic
def _number(context: Any, bits: Any) -> Any:
    """The fp32 number with these 32 bits."""

    def build(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), build


@register_jitable
def rounded(x):
    """The nearest number in 16 bits, the even one of two, as uint16; for kernels.

    What is too large becomes infinite; no number stays no number, whatever its bits.
    """
    bits = bits_of(x)
    nearest = (bits + _HALF + ((bits >> _SHIFT) & _ONE)) >> _SHIFT
    return np.uint16(nearest if x == x else _NO_NUMBER)


@register_jitable
def widened(bits):
    """The fp32 number of 16 bits, exactly; for kernels."""
    return _number(np.uint32(bits) << _SHIFT)
