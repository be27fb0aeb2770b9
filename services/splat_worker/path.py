"""Camera paths: the cameras between key cameras, and when each frame of a path is wanted. Pure."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from services.splat_worker.camera import Camera

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Path:
    """Cameras along keys of one size; at least one. `between`: frames between two neighbouring keys.

    Positions follow a uniform Catmull-Rom spline (its ends leave as they would for one more key straight on), so that
    the speed has no jumps; rotations turn evenly and the shorter way (slerp); focal lengths change by equal factors,
    centres evenly. A key's own frame is its very camera.
    """

    keys: tuple[Camera, ...]
    between: int

    @property
    def count(self) -> int:
        """Frames of the whole path."""
        return (len(self.keys) - 1) * (self.between + 1) + 1

    def camera(self, index: int) -> Camera:
        """The camera of a frame, 0 to `count` - 1."""
        key, step = divmod(index, self.between + 1)
        if step == 0:
            return self.keys[key]
        share = step / (self.between + 1)
        before, after = self.keys[key], self.keys[key + 1]
        rotation = _matrix(slerp(self._turns[key], self._turns[key + 1], share))
        shift = -rotation @ catmull_rom(self._places, key, share)
        return Camera(
            rotation=tuple(rotation.ravel().tolist()),
            translation=(float(shift[0]), float(shift[1]), float(shift[2])),
            fx=before.fx ** (1 - share) * after.fx**share,
            fy=before.fy ** (1 - share) * after.fy**share,
            cx=(1 - share) * before.cx + share * after.cx,
            cy=(1 - share) * before.cy + share * after.cy,
            width=before.width,
            height=before.height,
            whole=before.whole,
        )

    @cached_property
    def _places(self) -> Array:  # [keys, 3]
        return np.array([-np.reshape(key.rotation, (3, 3)).T @ key.translation for key in self.keys])

    @cached_property
    def _turns(self) -> Array:  # [keys, 4], wxyz
        return np.array([_quaternion(np.reshape(key.rotation, (3, 3))) for key in self.keys])


def catmull_rom(places: Array, left: int, share: float) -> Array:
    """The point at `share` of the way from `places[left]` to the next; `places` [points, 3], at least two."""
    start, end = places[left], places[left + 1]
    before = places[left - 1] if left > 0 else 2 * start - end
    after = places[left + 2] if left + 2 < len(places) else 2 * end - start
    leaving, arriving = (end - before) / 2, (after - start) / 2
    t = share
    point: Array = (
        (2 * t**3 - 3 * t**2 + 1) * start
        + (t**3 - 2 * t**2 + t) * leaving
        + (3 * t**2 - 2 * t**3) * end
        + (t**3 - t**2) * arriving
    )
    return point


def slerp(start: Array, end: Array, share: float) -> Array:
    """The unit quaternion [4] at `share` of the shorter way between two."""
    cosine = float(start @ end)
    if cosine < 0:
        end, cosine = -end, -cosine
    angle = math.acos(min(cosine, 1.0))
    if angle < 1e-6:  # the sines below cancel; the chord is the arc
        mixed: Array = (1 - share) * start + share * end
    else:
        mixed = (math.sin((1 - share) * angle) * start + math.sin(share * angle) * end) / math.sin(angle)
    unit: Array = mixed / np.linalg.norm(mixed)
    return unit


def _quaternion(m: Array) -> Array:
    """wxyz of a rotation [3, 3]: the row of 4 q q^T with the largest diagonal, so that nothing cancels (Shepperd)."""
    trace = m[0, 0] + m[1, 1] + m[2, 2]
    x, y, z = m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]
    xy, xz, yz = m[0, 1] + m[1, 0], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1]
    rows = np.array(
        [
            [1 + trace, x, y, z],
            [x, 1 + 2 * m[0, 0] - trace, xy, xz],
            [y, xy, 1 + 2 * m[1, 1] - trace, yz],
            [z, xz, yz, 1 + 2 * m[2, 2] - trace],
        ]
    )
    row = rows[int(np.argmax(np.diag(rows)))]
    unit: Array = row / np.linalg.norm(row)
    return unit


def _matrix(quaternion: Array) -> Array:  # [3, 3]
    w, x, y, z = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


@dataclass(frozen=True, slots=True)
class Timetable:
    """When the frames of a path are wanted. Times are monotonic seconds."""

    arrival_s: float
    target_s: float
    """When the whole path is wanted; at most `due_s`."""
    due_s: float
    """When the whole path must be complete."""
    count: int
    frames_per_second: float | None
    """None: as fast as can be."""
    start_delay_s: float
    """With a rate: when the first frame is shown, after the arrival."""

    def frame_due_s(self, index: int) -> float:
        """When a frame must be complete, or else it is skipped."""
        if self.frames_per_second is None:
            return self.due_s
        return min(self.due_s, self.arrival_s + self.start_delay_s + index / self.frames_per_second)

    def frame_target_s(self, index: int) -> float:
        """When a frame is wanted: at an even pace from the start, so that the delay is left for what comes between."""
        if self.frames_per_second is None:
            return self.arrival_s + (index + 1) / self.count * (self.target_s - self.arrival_s)
        pace_s = self.arrival_s + (index + 1) / self.frames_per_second
        return min(self.frame_due_s(index), pace_s)
