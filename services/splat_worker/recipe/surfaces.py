"""Surfaces of the shipped scene, sampled as flat gaussians (surfels) at even density."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

TANGENT_SIGMA = 0.75  # of the spacing between surfels: closed surfaces without visible discs
NORMAL_SIGMA = 0.08
_R2 = np.array([0.7548776662466927, 0.5698402909980532])  # Roberts' R2 sequence: even without a grid's moire


@dataclass(frozen=True)
class Surfels:
    """Samples of one surface with its material."""

    points: Array  # [surfels, 3]
    normals: Array  # [surfels, 3] unit
    albedo: Array  # [surfels, 3] linear, 0 to 1
    gloss: Array  # [surfels] share of mirror-like light, 0 to 1
    metal: Array  # [surfels] 1 where reflections take the albedo's tint
    spacing: Array  # [surfels] distance to the neighbours
    opacity: Array  # [surfels] 0 to 1

    @staticmethod
    def join(parts: "list[Surfels]") -> "Surfels":
        names = ("points", "normals", "albedo", "gloss", "metal", "spacing", "opacity")
        return Surfels(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def sunk(self, depth: float) -> "Surfels":
        """The same surfels `depth` spacings under their surface."""
        return replace(self, points=self.points - depth * self.spacing[:, None] * self.normals)


Paint = Callable[[Array, Array], Array]
"""Albedo [surfels, 3] from surface coordinates [surfels, 2] in 0 to 1 and points [surfels, 3]."""


def floor(count: int, radius: float, paint: Paint, rng: np.random.Generator) -> Surfels:
    """A disc at height 0 whose rim fades out."""
    uv = _even(count, rng)
    r, angle = radius * np.sqrt(uv[:, 0]), 2 * np.pi * uv[:, 1]
    points = np.stack([r * np.cos(angle), np.zeros(count), r * np.sin(angle)], axis=1)
    normals = np.tile([0.0, 1.0, 0.0], (count, 1))
    fade = np.clip((radius - r) / (0.2 * radius), 0, 1)
    area = np.pi * radius**2
    return _surfels(points, normals, paint(uv, points), area, rng, gloss=0.25, opacity=0.97 * fade**0.5)


def sphere(count: int, centre: Array, radius: float, paint: Paint, rng: np.random.Generator, gloss: float) -> Surfels:
    """A ball, even in area."""
    uv = _even(count, rng)
    height, angle = 1 - 2 * uv[:, 0], 2 * np.pi * uv[:, 1]
    ring = np.sqrt(1 - height**2)
    normals = np.stack([ring * np.cos(angle), height, ring * np.sin(angle)], axis=1)
    points = centre + radius * normals
    return _surfels(points, normals, paint(uv, normals), 4 * np.pi * radius**2, rng, gloss=gloss, bend=radius)


def column(count: int, centre: Array, radius: float, height: float, paint: Paint, rng: np.random.Generator) -> Surfels:
    """A fluted column that stands on the floor, with a flat top."""
    side, top = 2 * np.pi * radius * height, np.pi * radius**2
    on_top = int(count * top / (side + top))
    uv = _even(count - on_top, rng)
    angle = 2 * np.pi * uv[:, 0]
    flute = 0.035 * radius * np.cos(12 * angle)
    out = np.stack([np.cos(angle), np.zeros_like(angle), np.sin(angle)], axis=1)
    along = np.stack([-np.sin(angle), np.zeros_like(angle), np.cos(angle)], axis=1)
    normals = out + (0.42 * np.sin(12 * angle))[:, None] * along  # 0.035 * 12: the flute's slope
    points = centre + (radius + flute)[:, None] * out + (height * uv[:, 1])[:, None] * np.array([0, 1.0, 0])
    body = _surfels(points, _unit(normals), paint(uv, points), side, rng, gloss=0.15, bend=radius)
    disc = _even(on_top, rng)
    r, turn = 0.94 * radius * np.sqrt(disc[:, 0]), 2 * np.pi * disc[:, 1]
    lid = centre + np.stack([r * np.cos(turn), np.full(on_top, height), r * np.sin(turn)], axis=1)
    cap = _surfels(lid, np.tile([0.0, 1.0, 0.0], (on_top, 1)), paint(disc, lid), top, rng, gloss=0.15, bend=radius)
    return Surfels.join([body, cap])


def knot_curve(t: Array) -> Array:
    """A trefoil knot (2, 3) of outer radius about 1, standing upright around height 1.25. t in 0 to 1."""
    a = 2 * np.pi * t
    r = 0.66 + 0.28 * np.cos(3 * a)
    return np.stack([r * np.cos(2 * a), 1.25 + r * np.sin(2 * a), 0.36 * np.sin(3 * a)], axis=1)


def knot(count: int, tube: float, paint: Paint, rng: np.random.Generator, gloss: float) -> Surfels:
    """A metal tube around the knot's curve, even along its length."""
    table = np.linspace(0, 1, 4097)
    steps = np.linalg.norm(np.diff(knot_curve(table), axis=0), axis=1)
    travelled = np.concatenate([[0], np.cumsum(steps)])
    uv = _even(count, rng)
    t = np.interp(uv[:, 0] * travelled[-1], travelled, table)
    centre, tangent = knot_curve(t), _unit(knot_curve(t + 1e-4) - knot_curve(t - 1e-4))
    side = _unit(np.cross(tangent, [0.0, 0.0, 1.0]))
    other = np.cross(tangent, side)
    angle = 2 * np.pi * uv[:, 1]
    normals = np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * other
    area = 2 * np.pi * tube * travelled[-1]
    albedo = paint(uv, centre + tube * normals)
    return _surfels(centre + tube * normals, normals, albedo, area, rng, gloss=gloss, metal=1.0, bend=tube)


def sky(count: int, radius: float, colour: Callable[[Array], Array], rng: np.random.Generator) -> Surfels:
    """A far dome from a little under the horizon up, of large soft gaussians that carry their colour as light of
    their own."""
    uv = _even(count, rng)
    height, angle = -0.4 + 1.4 * uv[:, 0], 2 * np.pi * uv[:, 1]
    ring = np.sqrt(1 - height**2)
    out = np.stack([ring * np.cos(angle), height, ring * np.sin(angle)], axis=1)
    area = 2.8 * np.pi * radius**2
    return _surfels(radius * out, -out, colour(out), area, rng, gloss=0.0, opacity=0.95, spread=1.25)


def _surfels(
    points: Array,
    normals: Array,
    albedo: Array,
    area: float,
    rng: np.random.Generator,
    *,
    gloss: float,
    metal: float = 0.0,
    opacity: Array | float = 0.95,
    spread: float = 1.0,
    bend: float = np.inf,
) -> Surfels:
    """`bend` is the radius of curvature: flat discs that are large beside it would stand out from the surface."""
    count = len(points)
    even = min(spread * np.sqrt(area / max(count, 1)), 0.32 * bend)
    spacing = even * rng.uniform(0.85, 1.15, count)
    worn = np.clip(opacity * rng.uniform(0.9, 1.0, count), 0, 0.99)
    return Surfels(points, normals, albedo, np.full(count, gloss), np.full(count, metal), spacing, worn)


def _even(count: int, rng: np.random.Generator) -> Array:
    """Evenly spread points [count, 2] in the unit square."""
    uv: Array = (rng.uniform(size=2) + np.arange(1, count + 1)[:, None] * _R2) % 1
    return uv


def _unit(vectors: Array) -> Array:
    unit: Array = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit
