"""The shipped scene: a golden knot among spheres and columns on a tiled floor, under an evening sky."""

import numpy as np

from services.splat_worker.recipe import light, surfaces
from services.splat_worker.recipe.surfaces import Array, Surfels
from services.splat_worker.scene import Gaussians

SKY = 0.03  # of all gaussians
COATS = ((0.76, 0.0), (0.19, 0.4), (0.05, 0.7))  # share of the others, depth under the surface in spacings
PARTS = {"floor": 0.42, "knot": 0.25, "spheres": 0.16, "columns": 0.17}  # of a coat
_COLUMNS = 7
_FLOOR_RADIUS = 3.4
_TUBE = 0.165
_SPHERES = (  # centre, radius, paint, gloss
    ((1.35, 0.42, 0.95), 0.42, "red", 0.35),
    ((-1.25, 0.34, 1.15), 0.34, "stripes", 0.22),
    ((0.25, 0.22, 1.55), 0.22, "pearl", 0.40),
    ((-0.55, 0.16, 1.75), 0.16, "jade", 0.30),
    ((2.05, 0.20, 0.15), 0.20, "amber", 0.30),
)


def build(count: int, seed: int) -> Gaussians:
    """About `count` gaussians of the scene; the same for the same seed.

    Under the fine coat lie coats of fewer, larger surfels: what a level leaves out does not become a hole.
    """
    rng = np.random.default_rng(seed)
    far = surfaces.sky(int(count * SKY), 12.0, light.sky_colour, rng)
    near = count - len(far.points)
    solid = Surfels.join([_objects(int(near * share), rng).sunk(depth) for share, depth in COATS])
    sh = np.concatenate([light.shade(solid, _occluders()), light.emit(far.albedo)])
    every = Surfels.join([solid, far])
    sigma = every.spacing[:, None] * np.array([surfaces.TANGENT_SIGMA] * 2 + [surfaces.NORMAL_SIGMA])
    return Gaussians(
        means=every.points.astype(np.float32),
        quats=_facing(every.normals).astype(np.float32),
        scales=sigma.astype(np.float32),
        opacities=every.opacity.astype(np.float32),
        sh=sh,
    )


def _objects(count: int, rng: np.random.Generator) -> Surfels:
    parts = (_ground, _knot, _spheres, _columns)
    return Surfels.join([surfels for part in parts for surfels in part(count, rng)])


def _ground(count: int, rng: np.random.Generator) -> list[Surfels]:
    return [surfaces.floor(int(count * PARTS["floor"]), _FLOOR_RADIUS, _tiles, rng)]


def _knot(count: int, rng: np.random.Generator) -> list[Surfels]:
    return [surfaces.knot(int(count * PARTS["knot"]), _TUBE, _gold, rng, gloss=0.75)]


def _spheres(count: int, rng: np.random.Generator) -> list[Surfels]:
    areas = np.array([radius**2 for _, radius, _, _ in _SPHERES])
    parts = (count * PARTS["spheres"] * areas / areas.sum()).astype(int)
    return [
        surfaces.sphere(int(part), np.array(centre), radius, _PAINTS[paint], rng, gloss)
        for part, (centre, radius, paint, gloss) in zip(parts, _SPHERES, strict=True)
    ]


def _columns(count: int, rng: np.random.Generator) -> list[Surfels]:
    part = int(count * PARTS["columns"] / _COLUMNS)
    return [
        surfaces.column(part, centre, 0.17, height, lambda uv, points: _stone(points), rng)
        for centre, height in _column_places()
    ]


def _column_places() -> list[tuple[Array, float]]:
    """A half circle behind the knot, rising to its middle."""
    angles = np.linspace(np.radians(200), np.radians(340), _COLUMNS)
    heights = 0.9 + 1.1 * np.sin(np.linspace(0, np.pi, _COLUMNS))
    places = [2.35 * np.array([np.cos(angle), 0.0, np.sin(angle)]) for angle in angles]
    return list(zip(places, heights.tolist(), strict=True))


def _occluders() -> light.Occluders:
    along = surfaces.knot_curve(np.linspace(0, 1, 120, endpoint=False))
    balls = [(point, _TUBE) for point in along]
    balls += [(np.array(centre), radius) for centre, radius, _, _ in _SPHERES]
    for foot, height in _column_places():
        balls += [(foot + np.array([0, level, 0]), 0.17) for level in np.arange(0.08, height, 0.14)]
    return light.Occluders(np.array([centre for centre, _ in balls]), np.array([radius for _, radius in balls]))


def _tiles(uv: Array, points: Array) -> Array:
    """Marble tiles in two tones with dark joints."""
    cell = np.floor(points[:, [0, 2]] / 0.425)
    within = points[:, [0, 2]] / 0.425 - cell
    light_tile = ((cell.sum(axis=1) % 2) == 0)[:, None]
    veins = _waves(points[:, [0, 2, 0]] * 2.3)[:, None]
    base = np.where(light_tile, np.array([0.66, 0.58, 0.47]), np.array([0.08, 0.12, 0.15])) * (0.85 + 0.25 * veins)
    joint = (np.abs(within - 0.5).max(axis=1) > 0.47)[:, None]
    return np.where(joint, np.array([0.10, 0.09, 0.08]), base)


def _gold(uv: Array, points: Array) -> Array:
    bands = 0.5 + 0.5 * np.cos(2 * np.pi * 48 * uv[:, :1])
    return np.array([1.0, 0.62, 0.16]) * (0.86 + 0.14 * bands)


def _stone(points: Array) -> Array:
    return np.array([0.58, 0.48, 0.38]) * (0.82 + 0.3 * _waves(points * 5))[:, None]


def _waves(points: Array) -> Array:
    """Smooth noise in 0 to 1, from a few turned sine waves."""
    x, y, z = points.T
    wave = np.sin(2.1 * x + 1.3 * np.sin(1.7 * z)) + np.sin(2.7 * y + 1.9 * np.sin(1.1 * x)) + np.sin(1.9 * (x + z) + y)
    noise: Array = 0.5 + wave / 6
    return noise


_PAINTS: dict[str, surfaces.Paint] = {
    "red": lambda uv, n: np.tile([0.62, 0.03, 0.025], (len(n), 1)),
    "stripes": lambda uv, n: np.where(
        (np.floor(6 * (n[:, 1:2] + 1)) % 2) == 0, np.array([0.02, 0.14, 0.36]), np.array([0.86, 0.83, 0.76])
    ),
    "pearl": lambda uv, n: np.array([0.86, 0.84, 0.82]) * (0.92 + 0.08 * _waves(n * 4))[:, None],
    "jade": lambda uv, n: np.array([0.03, 0.34, 0.14]) * (0.7 + 0.5 * _waves(n * 6))[:, None],
    "amber": lambda uv, n: np.tile([0.80, 0.30, 0.02], (len(n), 1)),
}


def _facing(normals: Array) -> Array:
    """Quaternions wxyz [surfels, 4] that turn z to the normals."""
    w = 1 + normals[:, 2]
    quats = np.stack([w, -normals[:, 1], normals[:, 0], np.zeros_like(w)], axis=1)
    quats[w < 1e-6] = [0, 1, 0, 0]  # the normal is -z: half a turn around x
    turned: Array = quats / np.linalg.norm(quats, axis=1, keepdims=True)
    return turned
