"""How this package's kernels are compiled."""

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import config, types
from numba.extending import intrinsic

FloatArray = npt.NDArray[np.float32]
Function = TypeVar("Function", bound=Callable[..., object])

# Between kernels a waiting thread must sleep, not spin: other workers share the cores. Read when the layer is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Workqueue, numba's last resort, aborts the process when two threads launch kernels at once.
vars(config)["THREADING_LAYER_PRIORITY"] = ["omp", "tbb", "workqueue"]
# `contract` lets multiply-adds fuse. Nothing that assumes away NaN or infinity: degenerate projections rely
# on both.
_RELAXED = {"contract", "nsz", "arcp"}


def compiled(*, parallel: bool = False) -> Callable[[Function], Function]:
    """Compile a kernel: cached on disk (a cold start takes seconds), the GIL released while it runs.

    The cache of a kernel does not notice edits to kernels of other files that it calls: keep those in one
    file.
    """

    def decorate(function: Function) -> Function:
        jit = numba.njit(cache=True, nogil=True, parallel=parallel, fastmath=_RELAXED, error_model="numpy")
        return cast(Function, jit(function))

    return decorate


def use_threads(threads: int) -> None:
    """How many threads the calling thread's kernels use from now on; 1 to `max_threads()`."""
    numba.set_num_threads(min(max(threads, 1), max_threads()))


def max_threads() -> int:
    """The most threads that a call may use; NUMBA_NUM_THREADS or the number of CPUs."""
    return int(vars(config)["NUMBA_NUM_THREADS"])


def _prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Inside kernels: ask for the cache line of `array[index]`, a row of a matrix, and go on. Bounds are not
    checked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        found = context.make_array(signature.args[0])(context, builder, arguments[0])
        offset = builder.mul(arguments[1], builder.extract_value(found.strides, 0))
        address = builder.gep(builder.bitcast(found.data, ir.IntType(8).as_pointer()), [offset])
        pointer, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
        ask = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        builder.call(ask, [address, word(0), word(3), word(1)])  # to read, into the nearest cache, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


prefetch: Callable[[FloatArray, int], None] = cast(Any, intrinsic)(_prefetch)
