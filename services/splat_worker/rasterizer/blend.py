"""Blending: every tile front to back, a row of sixteen pixels at a time.

All state of a tile lives in one small buffer (transmittance, red, green, blue, depth), addressed by unsigned
indices so that the row loop compiles to vector code. A pixel that is done keeps its transmittance with the
sign flipped: no further splat can then leave more than 1e-4 of it, which is the very test that stops it, so
the row loop needs no branch.
"""

import math

import numpy as np
import numpy.typing as npt
from numba import prange

from services.splat_worker.rasterizer.binning import EMPTY_TILE, TILE_PX, TileLists
from services.splat_worker.rasterizer.compiled import compiled, prefetch
from services.splat_worker.rasterizer.project import BLUE, DEPTH, GREEN, LOG2_OPACITY, RED, Y0, Y1, A, B, C, X, Y
from services.splat_worker.scene import FloatArray

_F = np.float32
_U = np.uint64
_PIXELS = TILE_PX * TILE_PX
_PLANES = 5  # of a tile: transmittance, red, green, blue, depth
_AHEAD = 6  # splats between asking for a record and using it
_CHECK_EVERY = 16  # splats between looks at whether a tile is done
_SHARES_PER_THREAD = 16  # interleaved runs of tiles, so that threads end at about the same time

_LOG2_MIN_ALPHA = _F(-math.log2(255))
_MAX_ALPHA = _F(0.999)
_MIN_TRANSMITTANCE = _F(1e-4)
_ZERO, _ONE, _HALF = _F(0), _F(1), _F(0.5)
# Adding it leaves a number's nearest whole in the low bits of its mantissa.
_WHOLE = _F(1.5 * 2**23)
# 2^f on [-0.5, 0.5]: the polynomial of degree 4 with the least relative error, 2.6e-6. Read from memory, for
# literals would be fetched again in every row: numba's code model gives each its own address.
_EXP2 = np.array([0.9999992613, 0.6931218139, 0.2402474516, 0.0559178676, 0.0095700914], dtype=np.float32)
Flags = npt.NDArray[np.uint8]
Exp2 = tuple[float, float, float, float, float]


def blend_tiles(
    records: FloatArray,
    lists: TileLists,
    width: int,
    height: int,
    background: tuple[float, float, float],
    threads: int,
    with_depth: bool,
) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    """RGB [height, width, 3] over the background, alpha [height, width] and, when asked for, depth [height, width]: the
    sum of weight times depth; all float32."""
    rgb = np.empty((height, width, 3), dtype=np.float32)
    alpha = np.empty((height, width), dtype=np.float32)
    depth = np.empty((height, width), dtype=np.float32) if with_depth else None
    _blend_kernel(
        records, lists.entries, lists.starts, lists.tiles_across, shares(lists, threads * _SHARES_PER_THREAD),
        np.array(background, dtype=np.float32), _EXP2, rgb, alpha, depth,
    )  # fmt: skip
    return rgb, alpha, depth


def blend_weights(records: FloatArray, lists: TileLists, width: int, height: int, threads: int) -> FloatArray:
    """Per record its share of this frame, in pixels: the sum over pixels of alpha times transmittance."""
    bounds = shares(lists, threads)
    found = np.zeros((threads, len(records)), dtype=np.float32)
    _weight_kernel(records, lists.entries, lists.starts, lists.tiles_across, bounds, width, height, _EXP2, found)
    weights: FloatArray = found.sum(axis=0)
    return weights


def shares(lists: TileLists, runs: int) -> npt.NDArray[np.int64]:
    """Bounds [runs + 1] that cut the tiles into runs of about equal work."""
    work = lists.starts[1:] + EMPTY_TILE * np.arange(1, len(lists.starts))
    inner = np.searchsorted(work, work[-1] * np.arange(1, runs) / runs)
    return np.concatenate([[0], inner, [len(work)]]).astype(np.int64)


@compiled()
def _blend_splat(
    tile: FloatArray,
    alive: Flags,
    first: int,
    last: int,
    dx: float,
    dy: float,
    record: FloatArray,
    exp2: Exp2,
    depth: FloatArray | None,
) -> None:
    """Blend one splat into rows `first` to `last` of a tile; `dx`, `dy` from the splat to the tile's first pixel.
    `depth` is not touched: when it is None, code without depth is compiled."""
    a, b, c, full = record[A], record[B], record[C], record[LOG2_OPACITY]
    red, green, blue, far = record[RED], record[GREEN], record[BLUE], record[DEPTH]
    e0, e1, e2, e3, e4 = exp2
    for row in range(first, last + 1):
        if not alive[_U(row)]:
            continue
        y = dy + _F(row)
        for lane in range(TILE_PX):
            at = _U(row * TILE_PX) + _U(lane)
            x = dx + _F(lane)
            power = (c * y + b * x) * y + (a * x * x + full)  # log2 of alpha
            shifted = power + _WHOLE
            f = power - (shifted - _WHOLE)
            series = (((e4 * f + e3) * f + e2) * f + e1) * f + e0
            bits = np.float32(series).view(np.int32) + (np.float32(shifted).view(np.int32) << np.int32(23))
            alpha = min(np.int32(bits).view(np.float32), _MAX_ALPHA)
            drawn = alpha if (power <= full) & (power >= _LOG2_MIN_ALPHA) else _ZERO
            before = tile[at]
            weight = drawn * before
            after = before - weight
            goes_on = after > _MIN_TRANSMITTANCE
            blended = weight if goes_on else _ZERO
            tile[at] = after if goes_on else -abs(before)
            tile[at + _U(_PIXELS)] += blended * red
            tile[at + _U(2 * _PIXELS)] += blended * green
            tile[at + _U(3 * _PIXELS)] += blended * blue
            if depth is not None:
                tile[at + _U(4 * _PIXELS)] += blended * far


@compiled()
def _reset(tile: FloatArray, rows: int, columns: int) -> None:
    """Everything is visible, nothing blended; pixels beyond the frame are done from the start."""
    tile[:] = _ZERO
    for row in range(TILE_PX):
        for column in range(TILE_PX):
            tile[row * TILE_PX + column] = _ONE if row < rows and column < columns else -_ONE


@compiled()
def _find_alive(signs: npt.NDArray[np.int32], alive: Flags) -> bool:
    """Which rows still have a pixel that is not done, and whether any has; `signs` are the tile's bits. Whole numbers,
    for a chain of float maxima does not become vector code."""
    any_alive = False
    for row in range(TILE_PX):
        all_negative = np.int32(-1)
        for lane in range(TILE_PX):
            all_negative &= signs[_U(row * TILE_PX) + _U(lane)]
        alive[_U(row)] = all_negative >= 0
        if all_negative >= 0:
            any_alive = True
    return any_alive


@compiled()
def _store(
    tile: FloatArray,
    top: int,
    left: int,
    background: FloatArray,
    rgb: FloatArray,
    alpha: FloatArray,
    depth: FloatArray | None,
) -> None:
    """Write a finished tile to the frame, from pixel `top`, `left` on."""
    height, width = alpha.shape
    for row in range(top, min(top + TILE_PX, height)):
        for column in range(left, min(left + TILE_PX, width)):
            at = (row - top) * TILE_PX + column - left
            through = abs(tile[at])
            alpha[row, column] = _ONE - through
            for channel in range(3):
                rgb[row, column, channel] = tile[at + (channel + 1) * _PIXELS] + through * background[channel]
            if depth is not None:
                depth[row, column] = tile[at + 4 * _PIXELS]


@compiled(parallel=True)
def _blend_kernel(
    records: FloatArray,
    entries: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int64],
    across: int,
    bounds: npt.NDArray[np.int64],
    background: FloatArray,
    coefficients: FloatArray,
    rgb: FloatArray,
    alpha: FloatArray,
    depth: FloatArray | None,
) -> None:
    height, width = alpha.shape
    for share in prange(len(bounds) - 1):
        tile, alive = np.empty(_PLANES * _PIXELS, np.float32), np.empty(TILE_PX, np.uint8)
        signs = tile.view(np.int32)
        exp2 = (coefficients[0], coefficients[1], coefficients[2], coefficients[3], coefficients[4])
        for index in range(bounds[share], bounds[share + 1]):
            top, left = index // across * TILE_PX, index % across * TILE_PX
            _reset(tile, min(TILE_PX, height - top), min(TILE_PX, width - left))
            _find_alive(signs, alive)
            end = starts[index + 1]
            for place in range(starts[index], end):
                record = records[entries[place]]
                prefetch(records, entries[min(place + _AHEAD, end - 1)])
                first, last = max(int(record[Y0]) - top, 0), min(int(record[Y1]) - top, TILE_PX - 1)
                dx, dy = _F(left) + _HALF - record[X], _F(top) + _HALF - record[Y]
                _blend_splat(tile, alive, first, last, dx, dy, record, exp2, depth)
                if (place - starts[index]) % _CHECK_EVERY == _CHECK_EVERY - 1 and not _find_alive(signs, alive):
                    break
            _store(tile, top, left, background, rgb, alpha, depth)


@compiled(parallel=True)
def _weight_kernel(
    records: FloatArray,
    entries: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int64],
    across: int,
    bounds: npt.NDArray[np.int64],
    width: int,
    height: int,
    coefficients: FloatArray,
    found: FloatArray,
) -> None:
    """The blending loop again, adding up each splat's weights instead of colours."""
    for share in prange(len(bounds) - 1):
        tile, alive = np.empty(_PLANES * _PIXELS, np.float32), np.empty(TILE_PX, np.uint8)
        signs = tile.view(np.int32)
        exp2 = (coefficients[0], coefficients[1], coefficients[2], coefficients[3], coefficients[4])
        probe = np.zeros(len(records[0]), np.float32)
        for index in range(bounds[share], bounds[share + 1]):
            top, left = index // across * TILE_PX, index % across * TILE_PX
            _reset(tile, min(TILE_PX, height - top), min(TILE_PX, width - left))
            _find_alive(signs, alive)
            for place in range(starts[index], starts[index + 1]):
                slot = entries[place]
                probe[:] = records[slot]
                probe[RED], probe[GREEN], probe[BLUE] = _ONE, _ZERO, _ZERO
                first, last = max(int(probe[Y0]) - top, 0), min(int(probe[Y1]) - top, TILE_PX - 1)
                dx, dy = _F(left) + _HALF - probe[X], _F(top) + _HALF - probe[Y]
                tile[_PIXELS : 2 * _PIXELS] = _ZERO
                _blend_splat(tile, alive, first, last, dx, dy, probe, exp2, None)
                for pixel in range(first * TILE_PX, (last + 1) * TILE_PX):
                    found[share, slot] += tile[_PIXELS + pixel]
                if (place - starts[index]) % _CHECK_EVERY == _CHECK_EVERY - 1 and not _find_alive(signs, alive):
                    break
