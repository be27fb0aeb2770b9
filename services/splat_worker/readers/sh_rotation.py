"""Spherical harmonics of a scene that was turned."""

import numpy as np
import numpy.typing as npt

from services.splat_worker.scene import SH_COEFFICIENTS, FloatArray

Array = npt.NDArray[np.float64]
_DIRECTIONS = 128


def rotated_sh(sh: FloatArray, rotation: Array) -> FloatArray:
    """The coefficients [gaussians, coefficients, 3] that look from `rotation` [3, 3] @ d as `sh` did from d.

    A turn mixes the coefficients of a degree among themselves. The mixing is what carries the basis at many directions
    over to the basis at the same directions turned back (least squares, exact up to rounding).
    """
    directions = _spread(_DIRECTIONS)
    before, after = sh_basis(directions), sh_basis(directions @ rotation)  # rows are turned by the inverse
    turned = sh.copy()
    for degree in range(1, SH_COEFFICIENTS.index(sh.shape[1]) + 1):
        band = slice(degree * degree, (degree + 1) ** 2)
        mixing = np.linalg.lstsq(before[:, band], after[:, band], rcond=None)[0].round(12)
        turned[:, band] = np.einsum("ij,gjc->gic", mixing.astype(np.float32), sh[:, band])
    return turned


def sh_basis(directions: Array) -> Array:
    """The real basis of degrees 0 to 3 [directions, 16], in gsplat's order and signs; unit `directions` [n, 3]."""
    x, y, z = directions.T
    xx, yy, zz = x * x, y * y, z * z
    return np.stack(
        [
            np.full_like(x, 0.28209479177387814),
            -0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x,
            1.0925484305920792 * x * y, -1.0925484305920792 * y * z, 0.31539156525252005 * (2 * zz - xx - yy),
            -1.0925484305920792 * x * z, 0.5462742152960396 * (xx - yy),
            -0.5900435899266435 * y * (3 * xx - yy), 2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (4 * zz - xx - yy), 0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
            -0.4570457994644658 * x * (4 * zz - xx - yy), 1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ],
        axis=1,
    )  # fmt: skip


def _spread(count: int) -> Array:
    """Unit directions [count, 3] spread evenly (a Fibonacci sphere)."""
    z = 1 - (2 * np.arange(count) + 1) / count
    turn = np.pi * (1 + np.sqrt(5)) * np.arange(count)
    ring = np.sqrt(1 - z * z)
    return np.stack([ring * np.cos(turn), ring * np.sin(turn), z], axis=1)
