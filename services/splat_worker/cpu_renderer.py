"""Frames on the host's cores, and gangs of them.

A gang are frames of one scene and level drawn side by side, one on each core, instead of one after the other on all.
What of a frame runs on one core alone (sorting, scaling up, encoding) then leaves no other core idle; what runs on all
cores gains nothing. Whether that pays is measured for each scene at its calibration.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numba
from numba import threading_layer  # type: ignore[attr-defined]

from headway.errors import BadInput
from services.splat_worker.camera import Camera
from services.splat_worker.rasterizer import Picture, Projection, Rasterizer, TileLists
from services.splat_worker.renderer import Exposure
from services.splat_worker.scene import Scene

T = TypeVar("T")


class CpuRenderer:
    """A `Renderer` over a rasteriser of all threads, and one of one thread for each core."""

    engine, device, build = "numba-cpu", "cpu", numba.__version__

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._whole, self._each = Rasterizer(threads), [Rasterizer(1) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="gang")

    @property
    def gang_sizes(self) -> tuple[int, ...]:
        """One frame on each core, unless numba's last resort of a thread pool would abort the process."""
        return (self.threads,) if self.threads > 1 and threading_layer() != "workqueue" else ()

    def beside_bytes(self, scene: Scene) -> int:
        """None: scenes are drawn from where they are."""
        return 0

    def place(self, scene: Scene) -> None:
        """Nothing is needed."""

    def draw(self, exposures: Sequence[Exposure[T]]) -> list[T | BadInput]:
        """See `Renderer`; a view is too complex by its tile lists."""
        if len(exposures) == 1:
            return [_exposed(exposures[0], self._whole)]
        return list(self._pool.map(_exposed, exposures, self._each[: len(exposures)]))

    def close(self) -> None:
        """Ends the threads of gangs."""
        self._pool.shutdown()


def _exposed(exposure: Exposure[T], rasterizer: Rasterizer) -> T | BadInput:
    try:
        return exposure.finish(_picture(exposure, rasterizer))
    except BadInput as error:
        return error


def _picture(exposure: Exposure[T], rasterizer: Rasterizer) -> Picture:
    spec, rung = exposure.spec, exposure.rung
    camera, projection, lists = _binned(exposure, rasterizer)
    exposure.binned(lists.work)
    if exposure.rung != rung:
        camera, projection, lists = _binned(exposure, rasterizer)
    return rasterizer.blend(projection, lists, camera, spec.background, spec.with_depth)


def _binned(exposure: Exposure[T], rasterizer: Rasterizer) -> tuple[Camera, Projection, TileLists]:
    spec, rung = exposure.spec, exposure.rung
    camera = spec.camera_at(rung)
    projection = rasterizer.project(spec.scene.ranked.at(rung), camera, spec.sh_degree, spec.antialiased)
    return camera, projection, rasterizer.bin(projection, camera)
