"""Binning: which gaussians touch which tile, each tile's list front to back.

A stable counting sort by tile over gaussians that are already in depth order, so no tile has to sort. The
depth order is cut into segments, one per thread; every segment counts its tiles, prefix sums give it its
places, then it writes them.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import prange

from headway.errors import BadInput
from services.splat_worker.rasterizer.compiled import compiled, prefetch
from services.splat_worker.rasterizer.project import DISC, REACH, X0, X1, Y0, Y1, A, B, C, X, Y
from services.splat_worker.scene import FloatArray

TILE_PX = 16
EMPTY_TILE = 8
MAX_PAIRS = 64_000_000  # 256 MB of indices; a frame that needs more is refused, not attempted

_AHEAD = 12  # gaussians between asking for a record and using it
_KEPT_ROWS = 4  # tile rows of a gaussian that are remembered between the passes; few have more

_F = np.float32
_HALF, _ZERO = _F(0.5), _F(0)
_TINY = _F(1e-30)  # below it a splat is so huge that float32 cannot bound it: all tiles of its box are taken
_SLACK_PX = _F(0.02)  # tiles are kept when the ellipse misses them by less: covers float32's error


@dataclass(frozen=True)
class TileLists:
    """Gaussians per tile: `entries[starts[tile]:starts[tile + 1]]` are rows of the records, front to back."""

    entries: npt.NDArray[np.int32]  # [pairs]
    starts: npt.NDArray[np.int64]  # [tiles + 1]
    tiles_across: int
    tiles_down: int
    ms: float

    @property
    def pairs(self) -> int:
        return int(self.starts[-1])

    @property
    def work(self) -> int:
        """What blending will cost, in pairs: an empty tile costs about as much as EMPTY_TILE of them."""
        return self.pairs + EMPTY_TILE * (len(self.starts) - 1)


def bin_tiles(records: FloatArray, order: npt.NDArray[np.int32], width: int, height: int, threads: int) -> TileLists:
    """Tile lists of the records in `order` (front to back); `ms` is left to the caller's clock.

    Raises BadInput when the frame has more than MAX_PAIRS pairs of gaussian and tile.
    """
    across, down = -(-width // TILE_PX), -(-height // TILE_PX)
    counts = np.zeros((threads, across * down), dtype=np.int64)
    spans = np.empty((len(order), 2 + 2 * _KEPT_ROWS), dtype=np.int16)
    _count_kernel(records, order, across, counts, spans)
    per_tile = counts.sum(axis=0)
    starts = np.concatenate([[0], np.cumsum(per_tile)])
    if starts[-1] > MAX_PAIRS:
        raise BadInput("camera", f"this view pairs gaussians with tiles more than {MAX_PAIRS} times; that is the limit")
    places = np.cumsum(counts, axis=0) - counts + starts[:-1]
    entries = np.empty(int(starts[-1]), dtype=np.int32)
    _scatter_kernel(records, order, across, spans, places, entries)
    return TileLists(entries, starts, across, down, ms=0.0)


@compiled()
def _tile_span(record: FloatArray, tile_row: int) -> tuple[int, int]:
    """First and last tile of a row of tiles that the ellipse reaches, within its box; 1 and 0 when it reaches none.

    The ellipse is A dx^2 + B dx dy + C dy^2 >= REACH. At dy it is centred on B dy / (-2A) with half width
    sqrt(DISC dy^2 + 4 A REACH) / (-2A). Its rightmost point lies at dy = B sqrt(-REACH / (C DISC)), its
    leftmost at the mirror image; both edges are concave in dy, so clamping that dy to the row gives the
    row's extent.
    """
    a, b, c, disc, reach = record[A], record[B], record[C], record[DISC], record[REACH]
    first, last = record[X0], record[X1]
    curvature = c * disc
    # A box of one row or one column of tiles has no corner that the ellipse could miss.
    cornered = int(first) // TILE_PX < int(last) // TILE_PX and int(record[Y0]) // TILE_PX < int(record[Y1]) // TILE_PX
    if cornered and curvature > _TINY:
        low = max(record[Y0], _F(tile_row * TILE_PX)) + _HALF - record[Y]
        high = min(record[Y1], _F(tile_row * TILE_PX + TILE_PX - 1)) + _HALF - record[Y]
        extreme = b * math.sqrt(-reach / curvature)
        at_right = min(max(extreme, low), high)
        at_left = min(max(-extreme, low), high)
        widest = _F(4) * a * reach
        scale = -_HALF / a
        right = (b * at_right + math.sqrt(max(disc * at_right * at_right + widest, _ZERO))) * scale
        left = (b * at_left - math.sqrt(max(disc * at_left * at_left + widest, _ZERO))) * scale
        # What overflowed to NaN compares false, and leaves the box as it is.
        left_most, right_most = record[X] + left - _HALF - _SLACK_PX, record[X] + right - _HALF + _SLACK_PX
        if left_most > first:
            first = left_most
        if right_most < last:
            last = right_most
        if first > last:  # perhaps by more than the tiles' int16 holds
            return 1, 0
    return int(first) // TILE_PX, int(last) // TILE_PX


@compiled(parallel=True)
def _count_kernel(
    records: FloatArray,
    order: npt.NDArray[np.int32],
    across: int,
    counts: npt.NDArray[np.int64],
    spans: npt.NDArray[np.int16],
) -> None:
    """Counts pairs per segment and tile, and keeps what was found of each gaussian: first row, rows, then row by row
    the first and last tile. A segment ends early when it alone breaks the limit: a hostile view must not take
    minutes."""
    segments = len(counts)
    for segment in prange(segments):
        pairs = 0
        for i in range(len(order) * segment // segments, len(order) * (segment + 1) // segments):
            record = records[order[i]]
            prefetch(records, order[min(i + _AHEAD, len(order) - 1)])
            top = int(record[Y0]) // TILE_PX
            rows = int(record[Y1]) // TILE_PX - top + 1
            spans[i, 0], spans[i, 1] = top, rows
            for row in range(rows):
                first, last = _tile_span(record, top + row)
                if row < _KEPT_ROWS:
                    spans[i, 2 + 2 * row], spans[i, 3 + 2 * row] = first, last
                for column in range(first, last + 1):
                    counts[segment, (top + row) * across + column] += 1
                    pairs += 1
            if pairs > MAX_PAIRS:
                break


@compiled(parallel=True)
def _scatter_kernel(
    records: FloatArray,
    order: npt.NDArray[np.int32],
    across: int,
    spans: npt.NDArray[np.int16],
    places: npt.NDArray[np.int64],
    entries: npt.NDArray[np.int32],
) -> None:
    segments = len(places)
    for segment in prange(segments):
        for i in range(len(order) * segment // segments, len(order) * (segment + 1) // segments):
            top = int(spans[i, 0])
            for row in range(int(spans[i, 1])):
                if row < _KEPT_ROWS:
                    first, last = int(spans[i, 2 + 2 * row]), int(spans[i, 3 + 2 * row])
                else:
                    first, last = _tile_span(records[order[i]], top + row)
                for column in range(first, last + 1):
                    place = places[segment, (top + row) * across + column]
                    places[segment, (top + row) * across + column] = place + 1
                    entries[place] = order[i]
