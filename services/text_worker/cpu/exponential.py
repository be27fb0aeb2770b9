"""exp for compiled loops: plain arithmetic, so that loops vectorise; the C library's takes one number at a time."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

_LOG2E = np.float32(1.4426950408889634)
_C1, _C2, _C3 = np.float32(0.6931471805599453), np.float32(0.2402265069591007), np.float32(0.05550410866482158)
_C4, _C5, _C6 = np.float32(0.009618129107628477), np.float32(0.0013333558146428443), np.float32(0.0001540353039338161)
TERMS = (_LOG2E, _C1, _C2, _C3, _C4, _C5, _C6)
"""log2(e), and the polynomial's factors of f, f^2 and so on."""
_ONE, _LEAST, _MOST = np.float32(1.0), np.float32(-126.0), np.float32(127.0)


@intrinsic
def _as_float(context: Any, bits: Any) -> Any:
    """The fp32 number with these 32 bits."""

    def build(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), build


@register_jitable
def exp(x):
    """e**x in fp32 to 2 units in the last place; for kernels. Below -87 it is about 1e-38, above 88 about 1e38.

    2^n times a Taylor polynomial of 2^f in f, for n + f = x log2(e) and |f| <= 1/2.
    """
    y = min(max(x * _LOG2E, _LEAST), _MOST)
    n = np.rint(y)
    f = y - n
    power = _C6 * f + _C5
    power = power * f + _C4
    power = power * f + _C3
    power = power * f + _C2
    power = power * f + _C1
    power = power * f + _ONE
    return power * _as_float((np.int32(n) + np.int32(127)) << np.int32(23))
