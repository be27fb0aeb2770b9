"""How this package's kernels are compiled."""

import os
from collections.abc import Callable
from typing import TypeVar, cast

import numba
from numba.core import config

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
