"""Gangs: frames of one scene and level drawn side by side, one on each core, instead of one after the other on all.

What of a frame runs on one core alone (sorting, scaling up, encoding) then leaves no other core idle; what runs on all
cores gains nothing. Whether that pays is measured for each scene at its calibration.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from numba import threading_layer  # type: ignore[attr-defined]

from services.splat_worker.frame import Shot
from services.splat_worker.rasterizer import Rasterizer

T = TypeVar("T")


class Crew:
    """A rasteriser of one thread for each core."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._rasterizers = [Rasterizer(1) for _ in range(size)]
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="gang")

    @property
    def usable(self) -> bool:
        """Whether frames can be drawn side by side here: numba's last resort of a thread pool would abort the process.

        Known after the first frame of the process was drawn.
        """
        return self.size > 1 and threading_layer() != "workqueue"

    def side_by_side(self, draw: Callable[[Shot, Rasterizer], T], shots: Sequence[Shot]) -> list[T]:
        """Calls `draw` for every shot at once, at most `size`, and returns what it gave, in order. Blocks."""
        return list(self._pool.map(draw, shots, self._rasterizers[: len(shots)]))

    def all_at_once(self, draw: Callable[[Rasterizer], object]) -> None:
        """Calls `draw` once for each core: for measuring. Blocks."""
        list(self._pool.map(draw, self._rasterizers))

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()
