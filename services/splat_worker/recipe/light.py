"""Light of the shipped scene: sun with soft shadows, sky, contact shadows, and gloss fitted to spherical harmonics."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.splat_worker.rasterizer.project import sh_basis
from services.splat_worker.recipe.surfaces import Array, Surfels
from services.splat_worker.scene import FloatArray

SUN = np.array([0.80, 0.62, 0.30]) / np.linalg.norm([0.80, 0.62, 0.30])
SUN_COLOUR = np.array([2.15, 1.72, 1.18])
ZENITH, HORIZON, GROUND = np.array([0.05, 0.19, 0.52]), np.array([0.92, 0.64, 0.44]), np.array([0.20, 0.16, 0.14])
DIRECTIONS = 240  # view directions that the gloss is fitted over
_CHUNK = 4096


@dataclass(frozen=True)
class Occluders:
    """Balls that stand in for the objects where shadows are cast."""

    centres: Array  # [balls, 3]
    radii: Array  # [balls]


def sky_colour(directions: Array) -> Array:
    """Radiance [.., 3] from unit directions [.., 3]: a gradient with a glow around the sun."""
    height = directions[..., 1:2]
    up = HORIZON + (ZENITH - HORIZON) * np.clip(height, 0, 1) ** 0.45
    down = HORIZON + (GROUND - HORIZON) * np.clip(-5 * height, 0, 1)
    glow = np.clip(directions @ SUN, 0, 1)[..., None] ** 24
    radiance: Array = np.where(height >= 0, up, down) + 0.45 * glow * SUN_COLOUR
    return radiance


def shade(surfels: Surfels, occluders: Occluders) -> FloatArray:
    """SH coefficients [surfels, 16, 3] of the light that leaves each surfel, gamma-encoded, in gsplat's convention."""
    directions = _fibonacci(DIRECTIONS)
    basis = np.stack([_basis(direction) for direction in directions])  # [directions, 16]
    fit = np.linalg.pinv(basis)  # [16, directions]
    out = np.empty((len(surfels.points), 16, 3), dtype=np.float32)
    for start in range(0, len(out), _CHUNK):
        part = slice(start, start + _CHUNK)
        radiance = _radiance(surfels, part, occluders, directions)  # [part, directions, 3]
        out[part] = np.einsum("kd,pdc->pkc", fit, _gamma(radiance) - 0.5)
    return out


def emit(colour: Array) -> FloatArray:
    """SH coefficients [surfels, 16, 3] of surfels that glow alike in all directions."""
    out = np.zeros((len(colour), 16, 3), dtype=np.float32)
    out[:, 0] = (_gamma(colour) - 0.5) / 0.2820947917738781
    return out


def _radiance(surfels: Surfels, part: slice, occluders: Occluders, directions: Array) -> Array:
    points, normals, albedo = surfels.points[part], surfels.normals[part], surfels.albedo[part]
    sun = _sunlight(points, normals, occluders)  # [part]
    openness = _openness(points, normals, occluders)  # [part]
    ambient = (0.35 * HORIZON + 0.65 * ZENITH) * (0.6 + 0.4 * normals[:, 1:2]) * 0.75 + 0.10 * GROUND
    facing = np.clip(normals @ SUN, 0, 1)
    gloss, metal = surfels.gloss[part][:, None], surfels.metal[part][:, None]
    diffuse = albedo * (1 - 0.85 * metal) * ((sun * facing)[:, None] * SUN_COLOUR + openness[:, None] * ambient)
    # What a viewer sees mirrored: the sky along the reflected ray, and the sun's lobe where no shadow lies.
    cosine = normals @ directions.T  # [part, directions]
    mirrored = directions[None] - 2 * cosine[..., None] * normals[:, None]
    head_on = 0.10 + 0.70 * metal
    fresnel = head_on + (0.9 - head_on) * (1 - np.clip(-cosine, 0, 1)) ** 4
    tint = 1 + metal * (albedo - 1)
    lobe = np.clip(mirrored @ SUN, 0, 1) ** 10 * sun[:, None]
    sky = sky_colour(mirrored) * openness[:, None, None] * fresnel[..., None]
    shine = (gloss * tint)[:, None] * (sky + 2.2 * lobe[..., None] * SUN_COLOUR)
    radiance: Array = diffuse[:, None] + shine
    return radiance


def _sunlight(points: Array, normals: Array, occluders: Occluders) -> Array:
    """Share of the sun that reaches each point, soft by how nearly its ray passes a ball."""
    light = np.ones(len(points))
    start = points + 0.02 * normals
    for centre, radius in zip(occluders.centres, occluders.radii, strict=True):
        offset = centre - start
        along = offset @ SUN
        passing = np.sqrt(np.clip((offset**2).sum(axis=1) - along**2, 0, None))
        softness = 0.04 + 0.07 * np.clip(along, 0, None)
        clear = np.clip((passing - radius) / softness * 0.5 + 0.5, 0, 1)
        light = np.minimum(light, np.where(along > 0.3 * radius, clear, 1.0))
    return light


def _openness(points: Array, normals: Array, occluders: Occluders) -> Array:
    """Share of the sky that each point sees past the balls, and past the floor's own contact."""
    open_share = np.ones(len(points))
    for centre, radius in zip(occluders.centres, occluders.radii, strict=True):
        offset = centre - points
        distance = np.maximum(np.linalg.norm(offset, axis=1), 1.02 * radius)
        above = np.clip((offset * normals).sum(axis=1) / distance, 0, 1)
        open_share *= 1 - 0.7 * above * (radius / distance) ** 2
    low = np.clip(points[:, 1] / 0.35, 0, 1)
    return open_share * np.where(normals[:, 1] < 0.5, 0.45 + 0.55 * low, 1.0)


def _fibonacci(count: int) -> Array:
    height = 1 - 2 * (np.arange(count) + 0.5) / count
    angle = np.pi * (3 - np.sqrt(5)) * np.arange(count)
    ring = np.sqrt(1 - height**2)
    return np.stack([ring * np.cos(angle), height, ring * np.sin(angle)], axis=1)


def _basis(direction: Array) -> Array:
    out = np.empty(16, dtype=np.float32)
    x, y, z = direction.astype(np.float32)
    sh_basis(3, x, y, z, out)
    return out.astype(np.float64)


def _gamma(linear: npt.NDArray[np.float64]) -> Array:
    encoded: Array = np.clip(linear / (1 + 0.2 * linear), 0, 1.2) ** (1 / 2.2)
    return encoded
