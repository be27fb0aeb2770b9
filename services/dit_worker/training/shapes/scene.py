"""What is in each picture: everything random about it, drawn from (seed, index) alone."""

from dataclasses import dataclass

import numpy as np

from services.dit_worker.training.shapes.solids import NAMES, Array

DRAWS = 20
MOST_TILT = 0.7  # radians from upright


@dataclass(frozen=True, slots=True)
class Scenes:
    """n scenes. Colours are linear RGB in [0, 1]; the solid floats about the origin, the floor lies at y = -1.

    labels, form, gloss, ambient, elevation (radians), distance (to the camera): [n]; turn: [n, 3, 3], from the world
    to the solid; light: [n, 3], unit, towards it; paint, floor, sky, zenith: [n, 3]; offset: [n, 2], of the solid's
    centre in the picture, in half picture widths.
    """

    labels: Array
    form: Array
    turn: Array
    light: Array
    ambient: Array
    gloss: Array
    paint: Array
    floor: Array
    sky: Array
    zenith: Array
    elevation: Array
    distance: Array
    offset: Array

    def __len__(self) -> int:
        return len(self.labels)


def draw(seed: int, indices: range) -> Scenes:
    """The scenes at `indices` of the stream that `seed` names; classes take turns."""
    u = np.stack([_uniform(seed, index) for index in indices])  # [n, DRAWS]
    azimuth, height = (u[:, 5] - 0.5) * 2.4, 0.35 + 0.8 * u[:, 6]
    light = np.stack([np.sin(azimuth) * np.cos(height), np.sin(height), np.cos(azimuth) * np.cos(height)], axis=1)
    return Scenes(
        labels=np.array([index % len(NAMES) for index in indices], dtype=np.float32),
        form=u[:, 0],
        turn=_turns(2 * np.pi * u[:, 1], MOST_TILT * (2 * u[:, 2] - 1), 2 * np.pi * u[:, 3]),
        light=light,
        ambient=0.15 + 0.25 * u[:, 7],
        gloss=0.7 * u[:, 4],
        paint=_colour(u[:, 8], 0.55 + 0.4 * u[:, 9], 0.55 + 0.45 * u[:, 10]),
        floor=_colour(u[:, 11], 0.1 + 0.4 * u[:, 12], 0.25 + 0.6 * u[:, 13]),
        sky=_colour(u[:, 14], 0.1 + 0.4 * u[:, 15], 0.55 + 0.4 * u[:, 16]),
        zenith=_colour(u[:, 14], 0.4 + 0.4 * u[:, 15], 0.3 + 0.3 * u[:, 16]),
        elevation=0.2 + 0.55 * u[:, 17],
        distance=3.5 + 1.2 * u[:, 18],
        offset=np.stack([u[:, 19] - 0.5, (u[:, 19] * 7) % 1 - 0.5], axis=1) * 0.3,
    )


def _uniform(seed: int, index: int) -> Array:
    """[DRAWS] in [0, 1). numpy promises Philox's bits to stay as they are."""
    bits = np.random.Philox(key=np.array([seed, index], dtype=np.uint64)).random_raw(DRAWS)
    uniform: Array = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    return uniform


def _turns(yaw: Array, tilt: Array, lean: Array) -> Array:
    """Rotations [n, 3, 3]: a tilt about a level axis at angle `lean`, then a turn about y."""
    level = _about_y(lean)
    turns: Array = _about_y(yaw) @ level @ _about_x(tilt) @ level.transpose(0, 2, 1)
    return turns


def _about_y(angle: Array) -> Array:
    zero, one = np.zeros_like(angle), np.ones_like(angle)
    sine, cosine = np.sin(angle), np.cos(angle)
    return np.stack([cosine, zero, sine, zero, one, zero, -sine, zero, cosine], axis=1).reshape(-1, 3, 3)


def _about_x(angle: Array) -> Array:
    zero, one = np.zeros_like(angle), np.ones_like(angle)
    sine, cosine = np.sin(angle), np.cos(angle)
    return np.stack([one, zero, zero, zero, cosine, -sine, zero, sine, cosine], axis=1).reshape(-1, 3, 3)


def _colour(hue: Array, saturation: Array, value: Array) -> Array:
    """Linear RGB [n, 3] from hue, saturation and value in [0, 1]."""
    offsets = np.array([5, 3, 1], dtype=np.float32)
    k = (offsets + 6 * hue[:, None]) % 6
    colour: Array = (value[:, None] * (1 - saturation[:, None] * np.minimum(k, 4 - k).clip(0, 1))) ** 2
    return colour
