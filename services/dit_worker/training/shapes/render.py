"""Scenes to pictures: sphere tracing of the solid, closed forms for floor, sky and shadow; 1,000 a second."""

import numpy as np
import numpy.typing as npt

from services.dit_worker.training.shapes.scene import Scenes, draw
from services.dit_worker.training.shapes.solids import SOLIDS, Array, Solid

SIZE_PX = 32
GRID = 2  # rays along each side of a pixel
FOCAL = 2.6  # half picture widths
CHUNK = 64  # scenes traced together: their rays stay in the cache
MARCHES, NEAR = 28, 0.006
FLOOR_Y, HAZE = -1.0, 0.12
_TETRAHEDRON = np.array([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]], dtype=np.float32)

Pixels = npt.NDArray[np.uint8]


def pictures(seed: int, indices: range) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """([n, 3, 32, 32] sRGB bytes, [n] class ids) of the stream that `seed` names; the same wherever it is cut."""
    chunks = [indices[at : at + CHUNK] for at in range(0, len(indices), CHUNK)]
    drawn = [draw(seed, chunk) for chunk in chunks]
    labels = np.concatenate([scenes.labels for scenes in drawn]).astype(np.int64)
    return np.concatenate([_render(scenes) for scenes in drawn]), labels


def _render(scenes: Scenes) -> Pixels:
    origins, rays = _camera(scenes)  # [n, 3], [n, rays, 3]
    colour = _surroundings(scenes, origins, rays)
    for label, solid in enumerate(SOLIDS.values()):
        members = np.flatnonzero(scenes.labels == label)
        if len(members):
            _paint_solid(solid, scenes, members, origins, rays, colour)
    side = SIZE_PX
    pixels = colour.reshape(len(scenes), side, GRID, side, GRID, 3).mean(axis=(2, 4))  # light adds up linearly
    encoded = np.round(255 * np.sqrt(pixels.clip(0, 1))).astype(np.uint8)  # gamma 2
    return np.ascontiguousarray(encoded.transpose(0, 3, 1, 2))


def _camera(scenes: Scenes) -> tuple[Array, Array]:
    """Camera places [n, 3] and unit rays [n, (SIZE_PX * GRID)^2, 3], row by row from the top left."""
    count = SIZE_PX * GRID
    ticks = ((np.arange(count, dtype=np.float32) + 0.5) / count) * 2 - 1
    right, up = np.meshgrid(ticks, -ticks)
    plane = np.stack([right.ravel(), up.ravel()], axis=1)[None] - scenes.offset[:, None]  # [n, rays, 2]
    sine, cosine = np.sin(scenes.elevation)[:, None], np.cos(scenes.elevation)[:, None]
    x, y = plane[..., 0], plane[..., 1]
    rays = np.stack([x, y * cosine - FOCAL * sine, -y * sine - FOCAL * cosine], axis=2)
    rays /= np.sqrt(np.einsum("nri,nri->nr", rays, rays))[..., None]
    places = np.concatenate([np.zeros_like(sine), sine, cosine], axis=1) * scenes.distance[:, None]
    return places, rays


def _surroundings(scenes: Scenes, origins: Array, rays: Array) -> Array:
    """Floor with the solid's soft shadow, fading into the sky; [n, rays, 3] linear."""
    down = rays[..., 1]
    fall = np.where(down < -1e-3, (FLOOR_Y - origins[:, 1])[:, None] / np.minimum(down, -1e-3), np.inf)
    reach = np.minimum(fall, 40.0)
    rise = (down * 3).clip(0, 1)[..., None]
    sky = scenes.sky[:, None] * (1 - rise) + scenes.zenith[:, None] * rise
    lit = scenes.ambient[:, None] + (1 - scenes.ambient)[:, None] * _sunshine(scenes, origins, rays, reach)
    near = np.exp(-HAZE * (reach - scenes.distance[:, None]).clip(0, None)) * (down < -1e-3)
    floor = scenes.floor[:, None] * (lit * near)[..., None]
    colour: Array = floor + sky * (1 - near)[..., None]
    return colour


def _sunshine(scenes: Scenes, origins: Array, rays: Array, reach: Array) -> Array:
    """Share of the light that passes a ball in the solid's place, at what the rays meet on the floor; [n, rays]."""
    points = origins[:, None] + rays * reach[..., None]
    along = np.einsum("nri,ni->nr", points, scenes.light)  # negative: the solid lies towards the light
    past = np.sqrt((np.einsum("nri,nri->nr", points, points) - along**2).clip(0, None))
    open_sky = ((past - 0.35) / 0.6).clip(0, 1)
    sunshine: Array = np.where(along < 0, open_sky, 1.0) * scenes.light[:, None, 1]
    return sunshine


def _paint_solid(
    solid: Solid, scenes: Scenes, members: npt.NDArray[np.intp], origins: Array, rays: Array, colour: Array
) -> None:
    """Traces the solid of scenes `members`, and paints what is hit into `colour`."""
    towards = np.einsum("nri,ni->nr", rays[members], origins[members])  # negative; -towards is nearest the centre
    square = np.einsum("ni,ni->n", origins[members], origins[members])[:, None]
    half = 1.0 - (square - towards**2)
    row, ray = np.nonzero(half > 0)
    scene, depth = members[row], np.sqrt(half[row, ray])
    start, end = -towards[row, ray] - depth, -towards[row, ray] + depth
    turn = scenes.turn[members]
    base = np.einsum("nij,nj->ni", turn, origins[members])[row]
    direction = np.matmul(rays[members], turn.transpose(0, 2, 1))[row, ray]
    hit, at = _march(solid, base, direction, scenes.form[scene], start, end)
    if not len(hit):
        return
    points = base[hit] + direction[hit] * at[:, None]
    normals = np.einsum("nji,nj->ni", scenes.turn[scene[hit]], _normals(solid, points, scenes.form[scene[hit]]))
    colour[scene[hit], ray[hit]] = _shade(scenes, scene[hit], normals, rays[scene[hit], ray[hit]])


def _march(
    solid: Solid, base: Array, direction: Array, form: Array, start: Array, end: Array
) -> tuple[npt.NDArray[np.intp], Array]:
    """Which rays hit, and how far along."""
    alive, at = np.arange(len(base)), start.copy()
    hits = [alive[:0]]
    for _ in range(MARCHES):
        distance = solid(base[alive] + direction[alive] * at[alive][:, None], form[alive])
        close = distance < NEAR
        hits.append(alive[close])
        alive, distance = alive[~close], distance[~close]
        at[alive] += distance
        alive = alive[at[alive] < end[alive]]
        if not len(alive):
            break
    hit = np.concatenate(hits)
    return hit, at[hit]


def _normals(solid: Solid, points: Array, form: Array) -> Array:
    """The distance's slope from four probes; [n, 3] unit, in the solid's frame."""
    slope = sum(probe * solid(points + NEAR * probe, form)[:, None] for probe in _TETRAHEDRON)
    assert isinstance(slope, np.ndarray)
    length = np.sqrt(np.einsum("ni,ni->n", slope, slope)) + np.float32(1e-12)
    unit: Array = slope / length[:, None]
    return unit


def _shade(scenes: Scenes, scene: npt.NDArray[np.intp], normals: Array, rays: Array) -> Array:
    """Lambert and Blinn-Phong under one light, with light from the floor below; [n, 3] linear."""
    light = scenes.light[scene]
    lambert = np.einsum("ni,ni->n", normals, light).clip(0, 1)
    half = light - rays
    half /= np.sqrt(np.einsum("ni,ni->n", half, half))[:, None]
    shine = scenes.gloss[scene] * np.einsum("ni,ni->n", normals, half).clip(0, 1) ** 40
    ambient = scenes.ambient[scene] * (0.75 + 0.25 * normals[:, 1])
    diffuse = scenes.paint[scene] * (ambient + (1 - scenes.ambient[scene]) * lambert)[:, None]
    bounce = scenes.floor[scene] * (0.15 * (0.5 - 0.5 * normals[:, 1]))[:, None]
    light_out: Array = diffuse + bounce + shine[:, None]
    return light_out
