"""Which device frames are drawn on, and the renderer for it."""

import ctypes
import importlib.util
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from headway.server import StartError
from services.splat_worker.cpu_renderer import CpuRenderer
from services.splat_worker.renderer import Renderer

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

LEAST_LIKENESS_DB = 60.0
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def renderers(device: str, threads: int) -> Callable[[], Renderer]:
    """Makes renderers for `device`: "cpu", "cuda", or "auto" for CUDA where it can be used. `threads` of the host are
    for drawing on a CPU, or for what follows drawing on a GPU.

    Blocks: gsplat compiles its kernels at its first use on a host, which takes minutes. Raises StartError for "cuda"
    where it cannot be used.
    """
    if device != "cpu":
        obstacle = _obstacle()
        if obstacle is None:
            return lambda: _gsplat_renderer(threads)
        if device == "cuda":
            raise StartError(f"device: {obstacle}")
        log.info("frames are drawn on the CPU: %s", obstacle)
    return lambda: CpuRenderer(threads)


def _gsplat_renderer(threads: int) -> Renderer:
    import torch  # only here: a worker on a CPU does without its seconds and megabytes

    from services.splat_worker.gsplat_renderer import GsplatRenderer

    return GsplatRenderer(torch.device("cuda", torch.cuda.current_device()), threads)


def _obstacle() -> str | None:
    """What keeps frames from being drawn through CUDA, and what would help; None: nothing. Cheap looks come first."""
    for package in ("torch", "gsplat"):
        if not _is_installed(package):
            return f"cuda needs {package}, which is not installed: pip install 'headway[splat-cuda]'"
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        return f"cuda needs NVIDIA's driver, and this host has no {_DRIVER}"
    import torch

    if not torch.cuda.is_available():
        return "torch finds no CUDA device: it needs a build of torch for CUDA, and a driver that is new enough"
    log.info("frames are drawn through gsplat; where its kernels are not compiled yet, that takes minutes")
    return broken_kernels(torch.device("cuda", torch.cuda.current_device()))


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a module that was marked as missing
        return False


def broken_kernels(device: "torch.device") -> str | None:
    """What is wrong with gsplat's kernels, found by drawing a frame with them and with our own rasteriser: they are
    compiled or loaded at their first use, and say only then that they cannot be."""
    from services.splat_worker.gsplat_renderer import likeness_db

    try:
        likeness = likeness_db(device)
    except (RuntimeError, AttributeError, ImportError, OSError) as error:
        return (
            f"gsplat's CUDA kernels do not run ({type(error).__name__}: {error}): install a wheel of gsplat for this "
            "torch and CUDA, or the CUDA toolkit (nvcc) and a C++ compiler, with which it makes them at its first use"
        )
    if not likeness >= LEAST_LIKENESS_DB:  # also of NaN
        return f"gsplat draws other pixels than the CPU does: {likeness:.0f} dB, not at least {LEAST_LIKENESS_DB:.0f}"
    return None
