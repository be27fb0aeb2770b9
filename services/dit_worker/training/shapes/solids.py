"""Eight solids as signed distances, each inside the unit ball about its centre.

Every function maps points [n, 3] (y up) and a form [n] in [0, 1] (slim to stout) to [n] lower bounds of the distance to
the surface, with slope at most 1: what sphere tracing needs (Hart, 1996).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]
Solid = Callable[[Array, Array], Array]


def _ball(p: Array, form: Array) -> Array:
    return _length(p) - (0.7 + 0.2 * form)


def _cube(p: Array, form: Array) -> Array:
    bound: Array = np.abs(p).max(axis=1) - (0.48 + 0.09 * form)
    return bound


def _torus(p: Array, form: Array) -> Array:
    tube = 0.17 + 0.12 * form
    bound: Array = np.hypot(_around(p) - (0.97 - tube), p[:, 1]) - tube
    return bound


def _cone(p: Array, form: Array) -> Array:
    bound: Array = np.maximum(_slope(_around(p), p[:, 1], 0.5 + 0.2 * form), -0.7 - p[:, 1])
    return bound


def _cylinder(p: Array, form: Array) -> Array:
    bound: Array = np.maximum(_around(p) - (0.35 + 0.25 * form), np.abs(p[:, 1]) - (0.75 - 0.35 * form))
    return bound


def _pyramid(p: Array, form: Array) -> Array:
    side = np.maximum(np.abs(p[:, 0]), np.abs(p[:, 2]))
    bound: Array = np.maximum(_slope(side, p[:, 1], 0.45 + 0.1 * form), -0.6 - p[:, 1])
    return bound


def _capsule(p: Array, form: Array) -> Array:
    radius = 0.25 + 0.15 * form
    reach = 0.97 - radius
    bound: Array = np.hypot(_around(p), p[:, 1] - p[:, 1].clip(-reach, reach)) - radius
    return bound


def _cross(p: Array, form: Array) -> Array:
    sizes = np.sort(np.abs(p), axis=1)  # [n, 3]: the smallest two are the distances from the nearest bar's axis
    thick = 0.2 + 0.1 * form
    bound: Array = np.maximum(sizes[:, 1] - thick, sizes[:, 2] - 0.88)
    return bound


def _slope(out: Array, height: Array, half: Array) -> Array:
    """Distance to a wall that leans in: from `half` at the base to nothing at the tip, 0.9 above the centre."""
    base, tip = np.float32(-0.65), np.float32(0.9)
    rise = (tip - base) / half
    bound: Array = (rise * out + height - tip) / np.sqrt(1 + rise**2)
    return bound


def _around(p: Array) -> Array:
    bound: Array = np.hypot(p[:, 0], p[:, 2])
    return bound


def _length(p: Array) -> Array:
    bound: Array = np.sqrt(np.einsum("ij,ij->i", p, p))
    return bound


SOLIDS: dict[str, Solid] = {
    "ball": _ball,
    "cube": _cube,
    "torus": _torus,
    "cone": _cone,
    "cylinder": _cylinder,
    "pyramid": _pyramid,
    "capsule": _capsule,
    "cross": _cross,
}
NAMES = tuple(SOLIDS)
