"""Cameras spread around a scene: where its importance is measured, and where its ladder is."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.splat_worker.camera import Camera, look_at
from services.splat_worker.scene import Scene

Vector = tuple[float, float, float]
DEFAULT_UP: Vector = (0.0, 1.0, 0.0)
_GOLDEN_TURN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Pose:
    """Where a camera is and what it looks at; the vertical field of view is in degrees."""

    position: Vector
    target: Vector
    up: Vector = DEFAULT_UP
    field_of_view_deg: float = 50.0

    def camera(self, width: int, height: int) -> Camera:
        """Raises BadInput for poses or sizes that make no camera."""
        return look_at(self.position, self.target, self.up, self.field_of_view_deg, width, height)


def default_pose(scene: Scene, up: Vector = DEFAULT_UP) -> Pose:
    """A pose that shows the scene's dense middle, a little from above. Robust to far outliers; `up` is any
    direction."""
    middle = np.median(scene.means, axis=0).astype(np.float64)
    reach = max(float(np.quantile(np.linalg.norm(scene.means - middle, axis=1), 0.6)), 1e-3)
    side, ahead, above = _frame(np.array(up))
    position = middle + 2.4 * reach * (0.4 * above + 0.85 * ahead + 0.35 * side)
    return Pose(_vector(position), _vector(middle), up)


def orbit(home: Pose, count: int, start: float = 0.0) -> list[Pose]:
    """`count` poses around `home`'s target at its distance, a fifth nearer to a fifth farther, low to high.

    Turns advance by the golden ratio from `start` (a share of a turn), so that any count spreads evenly and two
    orbits with different starts share no camera.
    """
    target, position = np.array(home.target), np.array(home.position)
    side, ahead, above = _frame(np.array(home.up))
    distance = float(np.linalg.norm(position - target))
    poses = []
    for index in range(count):
        turn = 2 * math.pi * ((start + index * _GOLDEN_TURN) % 1)
        share = (index + 0.5) / count
        elevation = math.radians(4 + 56 * share)
        away = distance * (0.8 + 0.4 * ((start + 3 * index * _GOLDEN_TURN) % 1))
        ring = math.cos(elevation) * (math.cos(turn) * ahead + math.sin(turn) * side)
        place = target + away * (ring + math.sin(elevation) * above)
        poses.append(Pose(_vector(place), home.target, home.up, home.field_of_view_deg))
    return poses


def inside(home: Pose, count: int) -> list[Pose]:
    """`count` poses near `home`'s target that look outwards, turning evenly, level to a little down and up: what is
    seen from within a room or a crowd, which no orbit sees."""
    target = np.array(home.target)
    side, ahead, above = _frame(np.array(home.up))
    reach = 0.15 * float(np.linalg.norm(np.array(home.position) - target))
    poses = []
    for index in range(count):
        turn = 2 * math.pi * index / count
        outwards = math.cos(turn) * ahead + math.sin(turn) * side + 0.3 * (index % 3 - 1) * above
        place = target + reach * outwards
        poses.append(Pose(_vector(place), _vector(place + outwards), home.up, home.field_of_view_deg))
    return poses


def _frame(up: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], ...]:
    """Two level axes and the upward one, orthonormal."""
    above = up / np.linalg.norm(up)
    level = np.array([0.0, 0.0, 1.0]) if abs(above[2]) < 0.9 else np.array([0.0, 1.0, 0.0])
    side = np.cross(above, level)
    side /= np.linalg.norm(side)
    return side, np.cross(side, above), above


def _vector(point: npt.NDArray[np.float64]) -> Vector:
    return float(point[0]), float(point[1]), float(point[2])
