"""Tiles of AMX, for products of bytes (`int8_amx`) and of 16-bit numbers (`bf16_amx`).

A tile is up to 16 lines of 64 bytes, and there are 8. The operating system hands them out on request, once a process;
where it does not, there is no AMX.
"""

import ctypes
import platform

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import DTypeLike

LINES = 16
LINE_BYTES = 64
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA = 158, 0x1023, 18

llvmlite.binding.initialize_native_asmparser()  # for the instructions, which are given as assembly


def permitted(feature: str) -> bool:
    """Whether this CPU multiplies tiles as `feature` says and this process may: asks the operating system for it."""
    features = llvmlite.binding.get_host_cpu_features()
    if platform.system() != "Linux" or not (features.get("amx-tile") and features.get(feature)):
        return False
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA) == 0)


def aligned(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Memory with whatever is in it that begins at a cache line: tiles read lines across two several times slower."""
    size_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size_bytes + LINE_BYTES, np.uint8)
    first = -raw.ctypes.data % LINE_BYTES
    return raw[first : first + size_bytes].view(dtype).reshape(shape)


@intrinsic
def configure(context, shapes, which):
    """Tiles have the shape of shapes[which], uint8 [n, 64], on this thread until `release`."""

    def build(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        byte = ir.IntType(8).as_pointer()
        place = builder.gep(builder.bitcast(array.data, byte), [builder.mul(arguments[1], ir.IntType(64)(64))])
        builder.asm(ir.FunctionType(ir.VoidType(), [byte]), "ldtilecfg ($0)", "r,~{memory}", [place], True)
        return context.get_dummy_value()

    return types.void(shapes, which), build


@intrinsic
def release(context):
    """Gives the tiles of this thread back: threads are switched faster without."""

    def build(context, builder, signature, arguments):
        builder.asm(ir.FunctionType(ir.VoidType(), []), "tilerelease", "~{memory}", [], True)
        return context.get_dummy_value()

    return types.void(), build


def shapes_for(rows: int) -> np.ndarray:
    """Shapes of tiles for 32 rows, and for what is left of `rows` behind the last 32; uint8 [2, 64].

    Up to 16 rows: tiles 0 to 3 are sums, 4 is rows, 5 to 7 are weights. More: 0 and 1 are sums of the first 16 rows, 2
    and 3 of the others, 4 and 5 are rows, 6 and 7 weights.
    """
    shapes = np.zeros((2, 64), np.uint8)
    for line, count in zip(shapes, (2 * LINES, rows % (2 * LINES) or 2 * LINES), strict=True):
        first, second = min(count, LINES), max(count - LINES, 0)
        two = second > 0
        sums = [first, first, second, second] if two else [first] * 4
        lines = [*sums, first, *((second, LINES, LINES) if two else (LINES, LINES, LINES))]
        line[0] = 1  # the palette of 8 tiles of 1 KiB
        line[16:32:2] = LINE_BYTES  # 16 bits each
        line[48:56] = lines
    return shapes
