"""How the kernels of this package are compiled, and on which threads they run."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import torch
from numba.core import config

Function = TypeVar("Function", bound=Callable[..., object])

# Workqueue, numba's last resort, aborts the process when two threads launch kernels at once.
vars(config)["THREADING_LAYER_PRIORITY"] = ["omp", "tbb", "workqueue"]
# No `reassoc`: a row's sums must not depend on how many rows there are. No `nnan`, `ninf`: a broken model must be seen.
_RELAXED = {"contract", "nsz", "arcp"}


def compiled(*, parallel: bool = False) -> Callable[[Function], Function]:
    """Compile a kernel: cached on disk (a cold start takes many seconds), the GIL released while it runs.

    By itself numba's cache of a kernel does not notice edits to other files whose kernels or instructions are part of
    it, and would run what they were: here all of this package's files count.
    """

    def decorate(function: Function) -> Function:
        jit = numba.njit(cache=True, nogil=True, parallel=parallel, fastmath=_RELAXED, error_model="numpy")
        dispatcher: Any = jit(function)
        dispatcher._cache._cache_file._source_stamp = _SOURCES
        return cast(Function, dispatcher)

    return decorate


def sources_of(folder: Path) -> tuple[tuple[str, float, int], ...]:
    """Name, time and size of every source in a folder: another value when one of them has changed."""
    found = ((path.name, path.stat()) for path in sorted(folder.glob("*.py")))
    return tuple((name, about.st_mtime, about.st_size) for name, about in found)


_SOURCES = sources_of(Path(__file__).parent)


def share_torch_threads() -> None:
    """Lets numba's kernels run on torch's OpenMP threads. Call it before the first parallel kernel.

    Torch brings an OpenMP of its own under another name, so that two pools would spin against each other on every
    change from one to the other. With torch's symbols made global first, numba's layer binds to them.
    """
    for library in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    for library in sorted((Path(torch.__file__).parent.parent / "torch.libs").glob("libgomp*.so*")):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def use_threads(threads: int) -> None:
    """Torch and the calling thread's kernels use so many threads from now on; cheap when they do already.

    Numba's layer, when it starts, sets the number of OpenMP's threads and torch's with it, so torch's is set last.
    """
    ours = min(threads, int(vars(config)["NUMBA_NUM_THREADS"]))
    if numba.get_num_threads() != ours:
        numba.set_num_threads(ours)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
