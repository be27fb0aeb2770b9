"""Blending: every tile front to back, a row of sixteen pixels at a time.

All state of a tile lives in one small buffer (transmittance, red, green, blue), addressed by unsigned
indices so that the row loop compiles to vector code. A pixel that is done keeps its transmittance with the
sign flipped: no further splat can then leave more than 1e-4 of it, which is the very test that stops it, so
the row loop needs no branch.
"""

import numpy as np
import numpy.typing as npt
from numba import prange

from services.splat_worker.rasterizer.binning import EMPTY_TILE, TILE_PX, TileLists
from services.splat_worker.rasterizer.compiled import compiled
from services.splat_worker.rasterizer.project import BLUE, GREEN, OPACITY, RED, Y0, Y1, A, B, C, X, Y
from services.splat_worker.scene import FloatArray

_F = np.float32
_U = np.uint64
_PIXELS = TILE_PX * TILE_PX
_CHECK_EVERY = 16  # splats between looks at whether a tile is done
_SHARES_PER_THREAD = 16  # interleaved runs of tiles, so that threads end at about the same time

_MIN_ALPHA = _F(1 / 255)
_MAX_ALPHA = _F(0.999)
_MIN_TRANSMITTANCE = _F(1e-4)
_ZERO, _ONE, _HALF = _F(0), _F(1), _F(0.5)
# 2^f on [-0.5, 0.5]: Taylor terms in ln 2, relative error under 2.5e-6 with these six.
_E1, _E2, _E3 = _F(0.6931471806), _F(0.2402265070), _F(0.0555041087)
_E4, _E5 = _F(0.0096181291), _F(0.0013333558)


def blend_tiles(
    records: FloatArray,
    lists: TileLists,
    width: int,
    height: int,
    background: tuple[float, float, float],
    threads: int,
) -> tuple[FloatArray, FloatArray]:
    """RGB [height, width, 3] over the background and alpha [height, width], both float32."""
    rgb = np.empty((height, width, 3), dtype=np.float32)
    alpha = np.empty((height, width), dtype=np.float32)
    _blend_kernel(
        records, lists.entries, lists.starts, lists.tiles_across, shares(lists, threads * _SHARES_PER_THREAD),
        np.array(background, dtype=np.float32), rgb, alpha,
    )  # fmt: skip
    return rgb, alpha


def blend_weights(records: FloatArray, lists: TileLists, width: int, height: int, threads: int) -> FloatArray:
    """Per record its share of this frame, in pixels: the sum over pixels of alpha times transmittance."""
    bounds = shares(lists, threads)
    found = np.zeros((threads, len(records)), dtype=np.float32)
    _weight_kernel(records, lists.entries, lists.starts, lists.tiles_across, bounds, width, height, found)
    weights: FloatArray = found.sum(axis=0)
    return weights


def shares(lists: TileLists, runs: int) -> npt.NDArray[np.int64]:
    """Bounds [runs + 1] that cut the tiles into runs of about equal work."""
    work = lists.starts[1:] + EMPTY_TILE * np.arange(1, len(lists.starts))
    inner = np.searchsorted(work, work[-1] * np.arange(1, runs) / runs)
    return np.concatenate([[0], inner, [len(work)]]).astype(np.int64)


@compiled()
def _blend_row(tile: FloatArray, row: int, dx: float, dy: float, record: FloatArray) -> None:
    """Blend one splat into one row of a tile; `dx`, `dy` from the splat to the row's first pixel centre."""
    a, opacity = record[A], record[OPACITY]
    slope, offset = record[B] * dy, record[C] * dy * dy
    red, green, blue = record[RED], record[GREEN], record[BLUE]
    for lane in range(TILE_PX):
        at = _U(row * TILE_PX) + _U(lane)
        x = dx + _F(lane)
        power = (a * x + slope) * x + offset
        clamped = max(power, _F(-120))
        whole = np.floor(clamped + _HALF)
        f = clamped - whole
        series = ((((_E5 * f + _E4) * f + _E3) * f + _E2) * f + _E1) * f + _ONE
        alpha = min(
            opacity * series * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32),
            _MAX_ALPHA,
        )
        before = tile[at]
        after = before - before * alpha
        drawn = (power <= _ZERO) & (alpha >= _MIN_ALPHA)
        goes_on = after > _MIN_TRANSMITTANCE
        weight = alpha * before if drawn & goes_on else _ZERO
        done = -abs(before)
        tile[at] = (after if goes_on else done) if drawn else before
        tile[at + _U(_PIXELS)] += weight * red
        tile[at + _U(2 * _PIXELS)] += weight * green
        tile[at + _U(3 * _PIXELS)] += weight * blue


@compiled()
def _reset(tile: FloatArray, rows: int, columns: int) -> None:
    """Everything is visible, nothing blended; pixels beyond the frame are done from the start."""
    tile[:] = _ZERO
    for row in range(TILE_PX):
        for column in range(TILE_PX):
            tile[row * TILE_PX + column] = _ONE if row < rows and column < columns else -_ONE


@compiled()
def _is_done(tile: FloatArray) -> bool:
    most = -_ONE
    for pixel in range(_PIXELS):
        most = max(most, tile[pixel])
    return bool(most <= _ZERO)


@compiled(parallel=True)
def _blend_kernel(
    records: FloatArray,
    entries: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int64],
    across: int,
    bounds: npt.NDArray[np.int64],
    background: FloatArray,
    rgb: FloatArray,
    alpha: FloatArray,
) -> None:
    height, width = alpha.shape
    for share in prange(len(bounds) - 1):
        tile = np.empty(4 * _PIXELS, np.float32)
        for index in range(bounds[share], bounds[share + 1]):
            top, left = index // across * TILE_PX, index % across * TILE_PX
            rows, columns = min(TILE_PX, height - top), min(TILE_PX, width - left)
            _reset(tile, rows, columns)
            for place in range(starts[index], starts[index + 1]):
                record = records[entries[place]]
                first = max(int(record[Y0]) - top, 0)
                last = min(int(record[Y1]) - top, TILE_PX - 1)
                dx = _F(left) + _HALF - record[X]
                for row in range(first, last + 1):
                    _blend_row(tile, row, dx, _F(top + row) + _HALF - record[Y], record)
                if (place - starts[index]) % _CHECK_EVERY == _CHECK_EVERY - 1 and _is_done(tile):
                    break
            for row in range(rows):
                for column in range(columns):
                    at = row * TILE_PX + column
                    through = abs(tile[at])
                    alpha[top + row, left + column] = _ONE - through
                    for channel in range(3):
                        rgb[top + row, left + column, channel] = (
                            tile[at + (channel + 1) * _PIXELS] + through * background[channel]
                        )


@compiled(parallel=True)
def _weight_kernel(
    records: FloatArray,
    entries: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int64],
    across: int,
    bounds: npt.NDArray[np.int64],
    width: int,
    height: int,
    found: FloatArray,
) -> None:
    """The blending loop again, adding up each splat's weights instead of colours."""
    for share in prange(len(bounds) - 1):
        tile = np.empty(4 * _PIXELS, np.float32)
        probe = np.zeros(len(records[0]), np.float32)
        for index in range(bounds[share], bounds[share + 1]):
            top, left = index // across * TILE_PX, index % across * TILE_PX
            _reset(tile, min(TILE_PX, height - top), min(TILE_PX, width - left))
            for place in range(starts[index], starts[index + 1]):
                slot = entries[place]
                probe[:] = records[slot]
                probe[RED], probe[GREEN], probe[BLUE] = _ONE, _ZERO, _ZERO
                dx = _F(left) + _HALF - probe[X]
                for row in range(max(int(probe[Y0]) - top, 0), min(int(probe[Y1]) - top, TILE_PX - 1) + 1):
                    tile[_PIXELS + row * TILE_PX : _PIXELS + (row + 1) * TILE_PX] = _ZERO
                    _blend_row(tile, row, dx, _F(top + row) + _HALF - probe[Y], probe)
                    for lane in range(TILE_PX):
                        found[share, slot] += tile[_PIXELS + row * TILE_PX + lane]
                if (place - starts[index]) % _CHECK_EVERY == _CHECK_EVERY - 1 and _is_done(tile):
                    break
