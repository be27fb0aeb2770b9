"""How like two frames are."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from services.splat_worker.encode import Pixels

_MOST_DB = 99.0
_SIGMA, _RADIUS = 1.5, 5
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # of red, green and blue (BT.601)
_C1, _C2 = np.float32((0.01 * 255) ** 2), np.float32((0.03 * 255) ** 2)

Plane = npt.NDArray[np.float32]


def psnr_db(frames: Sequence[Pixels], tops: Sequence[Pixels]) -> float:
    """PSNR of all frames together, at most 99 dB."""
    pairs = zip(frames, tops, strict=True)
    errors = [np.mean((frame.astype(np.float64) - top) ** 2) for frame, top in pairs]
    mean = float(np.mean(errors)) / 255**2
    return _MOST_DB if mean < 10 ** (-_MOST_DB / 10) else -10 * math.log10(mean)


def ssim(frame: Pixels, top: Pixels) -> float:
    """Structural similarity of the luma of two frames [height, width, 3], 11 px or more high and wide; 1 for equal
    ones.

    The mean over all places of a Gaussian window of 11 px with a sigma of 1.5 px (Wang et al., IEEE TIP 13(4), 2004).
    """
    x, y = frame @ _LUMA, top @ _LUMA
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x * mean_x, _blur(y * y) - mean_y * mean_y
    covariance = _blur(x * y) - mean_x * mean_y
    alike = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    return float(np.mean(alike / ((mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2)), dtype=np.float64))


def _blur(plane: Plane) -> Plane:
    """Under the window wherever it lies inside the plane: 10 px fewer each way."""
    taps = np.exp(-(np.arange(-_RADIUS, _RADIUS + 1) ** 2) / (2 * _SIGMA**2))
    for axis in (0, 1):
        taps_along = (taps / taps.sum()).astype(np.float32)
        length = plane.shape[axis] - 2 * _RADIUS
        parts = [tap * plane.take(range(at, at + length), axis) for at, tap in enumerate(taps_along)]
        plane = np.add.reduce(parts)
    return plane
