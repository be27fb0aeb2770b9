"""Pinhole cameras in OpenCV and gsplat convention: world to camera, x right, y down, z forward."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from headway.errors import BadInput

MAX_SIDE_PX = 4096
MAX_PIXELS = 8_294_400
# Focal lengths and coordinates outside these cannot be projected in float32.
MAX_FOCAL_PX = 1e7
MAX_COORDINATE = 1e7
RIGID_TOLERANCE = 1e-3

Vector = Sequence[float]
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """A validated pinhole camera; build it with `from_matrices` or `look_at`.

    `rotation` (rows are the camera's axes in the world) and `translation` take world to camera. Focal
    lengths and centre are in pixels of a `width` x `height` frame; pixel centres lie at +0.5.
    """

    rotation: tuple[float, ...]  # [9] row major
    translation: tuple[float, float, float]
    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    whole: tuple[float, float, float, float] | None = None
    """Left, top, right and bottom edge of the frame that this is cut from, in this one's pixels; None: it is whole."""

    @property
    def whole_size(self) -> tuple[float, float]:
        """Width and height of the frame that this is cut from, in this one's pixels."""
        left, top, right, bottom = self.whole or (0.0, 0.0, self.width, self.height)
        return right - left, bottom - top

    @property
    def limits(self) -> tuple[float, float, float, float]:
        """Least and greatest x/z, then y/z, at which a splat's shape is still taken where it is: the frame's and 30 %
        of its half width beyond, as gsplat has it. Inside the projection's Jacobian directions are clamped to them."""
        left, top, right, bottom = self.whole or (0.0, 0.0, self.width, self.height)
        spare_x, spare_y = 0.15 * (right - left), 0.15 * (bottom - top)
        return (
            (left - spare_x - self.cx) / self.fx,
            (right + spare_x - self.cx) / self.fx,
            (top - spare_y - self.cy) / self.fy,
            (bottom + spare_y - self.cy) / self.fy,
        )

    @property
    def viewmat(self) -> Matrix:  # [4, 4]
        matrix = np.eye(4)
        matrix[:3, :3] = np.reshape(self.rotation, (3, 3))
        matrix[:3, 3] = self.translation
        return matrix

    @property
    def k(self) -> Matrix:  # [3, 3]
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1.0]])

    def cropped(self, left: int, top: int, width: int, height: int) -> "Camera":
        """A rectangle of this frame, in pixels: the pixels that the whole frame has there.

        Raises BadInput when it is empty or leaves the frame.
        """
        for name, start, side, limit in (("width", left, width, self.width), ("height", top, height, self.height)):
            if start < 0 or side < 1 or start + side > limit:
                raise BadInput("options.crop", f"{start} + {side} px leaves the frame, whose {name} is {limit} px")
        x0, y0, x1, y1 = self.whole or (0.0, 0.0, self.width, self.height)
        return replace(
            self,
            cx=self.cx - left,
            cy=self.cy - top,
            width=width,
            height=height,
            whole=(x0 - left, y0 - top, x1 - left, y1 - top),
        )

    def scaled(self, scale: float) -> "Camera":
        """The same view on a smaller frame: sides are `scale` times these, rounded, at least 1 px."""
        width, height = (max(1, round(side * scale)) for side in (self.width, self.height))
        across, down = width / self.width, height / self.height
        return replace(
            self,
            fx=self.fx * across,
            cx=self.cx * across,
            fy=self.fy * down,
            cy=self.cy * down,
            width=width,
            height=height,
            whole=None if self.whole is None else _scaled(self.whole, across, down),
        )


def from_matrices(viewmat: Vector, k: Vector, width: int, height: int) -> Camera:
    """Camera of a row-major world-to-camera matrix (16 values) and intrinsics (9 values, pixels).

    Raises BadInput naming the field: not finite, not a rigid motion, focal lengths that are not positive,
    skew, sizes.
    """
    _check_size(width, height)
    view = _matrix("camera.matrices.viewmat", viewmat, 4)
    _check_rigid(view)
    intrinsics = _matrix("camera.matrices.k", k, 3)
    _check_intrinsics(intrinsics)
    return Camera(
        rotation=tuple(view[:3, :3].ravel().tolist()),
        translation=(float(view[0, 3]), float(view[1, 3]), float(view[2, 3])),
        fx=float(intrinsics[0, 0]),
        fy=float(intrinsics[1, 1]),
        cx=float(intrinsics[0, 2]),
        cy=float(intrinsics[1, 2]),
        width=width,
        height=height,
    )


def look_at(position: Vector, target: Vector, up: Vector, field_of_view_deg: float, width: int, height: int) -> Camera:
    """Camera at `position` that looks at `target`; `field_of_view_deg` is vertical and pixels are square.

    Raises BadInput naming the field when the pose is not finite or singular (target at the position, up
    along the view).
    """
    _check_size(width, height)
    eye, goal, above = _point("position", position), _point("target", target), _point("up", up)
    forward = _unit(goal - eye, "camera.look_at.target", "must not be the position")
    above = _unit(above, "camera.look_at.up", "must not be zero")
    right = _unit(np.cross(forward, above), "camera.look_at.up", "must not be parallel to the line of sight")
    rotation = np.stack([right, np.cross(forward, right), forward])
    shift = -rotation @ eye
    if not (math.isfinite(field_of_view_deg) and 0.1 <= field_of_view_deg <= 179):
        raise BadInput("camera.look_at.field_of_view_deg", f"{field_of_view_deg}; must be 0.1 to 179")
    focal = height / (2 * math.tan(math.radians(field_of_view_deg) / 2))
    return Camera(
        rotation=tuple(rotation.ravel().tolist()),
        translation=(float(shift[0]), float(shift[1]), float(shift[2])),
        fx=focal,
        fy=focal,
        cx=width / 2,
        cy=height / 2,
        width=width,
        height=height,
    )


def _scaled(edges: tuple[float, float, float, float], across: float, down: float) -> tuple[float, float, float, float]:
    left, top, right, bottom = edges
    return left * across, top * down, right * across, bottom * down


def _check_size(width: int, height: int) -> None:
    for name, side in (("width", width), ("height", height)):
        if not 1 <= side <= MAX_SIDE_PX:
            raise BadInput(f"options.{name}", f"{side} px; must be 1 to {MAX_SIDE_PX}")
    if width * height > MAX_PIXELS:
        raise BadInput("options.width", f"{width} x {height} px; width times height must be at most {MAX_PIXELS}")


def _matrix(field: str, values: Vector, side: int) -> Matrix:
    if len(values) != side * side:
        raise BadInput(field, f"{len(values)} values; must be {side * side}")
    matrix = np.array(values, dtype=np.float64).reshape(side, side)
    if not (np.abs(matrix) <= MAX_COORDINATE).all():
        raise BadInput(field, f"every value must be finite and within +-{MAX_COORDINATE:g}")
    return matrix


def _check_rigid(view: Matrix) -> None:
    rotation = view[:3, :3]
    if not np.allclose(view[3], (0, 0, 0, 1), atol=1e-6):
        raise BadInput("camera.matrices.viewmat", "last row must be 0 0 0 1")
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > RIGID_TOLERANCE:
        raise BadInput("camera.matrices.viewmat", f"the upper left 3x3 must be a rotation (within {RIGID_TOLERANCE})")
    if np.linalg.det(rotation) < 0:
        raise BadInput("camera.matrices.viewmat", "must not mirror: the rotation's determinant is negative")


def _check_intrinsics(k: Matrix) -> None:
    fixed = k - np.array([[k[0, 0], 0, k[0, 2]], [0, k[1, 1], k[1, 2]], [0, 0, 1]])
    if np.abs(fixed).max() > 1e-6:
        raise BadInput("camera.matrices.k", "must be fx 0 cx 0 fy cy 0 0 1: skew is not supported")
    for name, focal in (("fx", k[0, 0]), ("fy", k[1, 1])):
        if not 1e-3 <= focal <= MAX_FOCAL_PX:
            raise BadInput("camera.matrices.k", f"{name} is {focal:g} px; must be 0.001 to {MAX_FOCAL_PX:g}")


def _point(name: str, values: Vector) -> Matrix:
    point = np.array(values, dtype=np.float64)
    if point.shape != (3,) or not (np.abs(point) <= MAX_COORDINATE).all():
        raise BadInput(f"camera.look_at.{name}", f"must be 3 finite values within +-{MAX_COORDINATE:g}")
    return point


def _unit(vector: Matrix, field: str, problem: str) -> Matrix:
    length = float(np.linalg.norm(vector))
    if length < 1e-9:
        raise BadInput(field, problem)
    return vector / length
