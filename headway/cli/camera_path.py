"""Camera paths as files: JSON with `cameras`, and how many frames lie between them.

    {"frames_between": 29, "frames_per_second": 30,
     "cameras": [{"position": [0, 1, 4], "target": [0, 0, 0], "up": [0, 1, 0], "field_of_view_deg": 50},
                 {"viewmat": [16 numbers, row major], "k": [9 numbers]}]}

A camera is a position and a target, with `up` and `field_of_view_deg` where wanted, or two matrices in gsplat's and
OpenCV's convention. `frames_between` (0) and `frames_per_second` (as fast as can be) may be left out.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.errors import BadInput
from headway.requests import look_at
from headway.v1 import splat_pb2

MAX_FILE_BYTES = 4 << 20
MAX_CAMERAS = 1024
_LOOK_AT, _MATRICES = {"position", "target", "up", "field_of_view_deg"}, {"viewmat", "k"}


@dataclass(frozen=True, slots=True)
class CameraPath:
    """What a file says; the worker checks the rest."""

    cameras: tuple[splat_pb2.Camera, ...]
    frames_between: int
    frames_per_second: float | None

    @property
    def frames(self) -> int:
        """Frames of the whole path."""
        return (len(self.cameras) - 1) * (self.frames_between + 1) + 1


def read_camera_path(file: Path) -> CameraPath:
    """Raises BadInput naming the field, and OSError."""
    if file.stat().st_size > MAX_FILE_BYTES:
        raise BadInput("path", f"{file} is larger than {MAX_FILE_BYTES} bytes")
    try:
        found = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise BadInput("path", f"{file} is not JSON: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("cameras"), list):
        raise BadInput("path.cameras", "must be a list of cameras in an object")
    if not 1 <= len(found["cameras"]) <= MAX_CAMERAS:
        raise BadInput("path.cameras", f"{len(found['cameras'])} cameras; must be 1 to {MAX_CAMERAS}")
    between, rate = found.get("frames_between", 0), found.get("frames_per_second")
    if type(between) is not int or not 0 <= between < 1 << 31:
        raise BadInput("path.frames_between", f"must be a whole number from 0 on, not {str(between)[:32]}")
    if rate is not None and not _number(rate, "path.frames_per_second") > 0:
        raise BadInput("path.frames_per_second", f"must be above 0, not {rate}")
    cameras = tuple(_camera(camera, f"path.cameras[{index}]") for index, camera in enumerate(found["cameras"]))
    return CameraPath(cameras, between, rate)


def _camera(found: Any, field: str) -> splat_pb2.Camera:
    names = set(found) if isinstance(found, dict) else set()
    if names == _MATRICES:
        viewmat, k = _numbers(found["viewmat"], 16, f"{field}.viewmat"), _numbers(found["k"], 9, f"{field}.k")
        return splat_pb2.Camera(matrices=splat_pb2.MatrixCamera(viewmat=viewmat, k=k))
    if not {"position", "target"} <= names <= _LOOK_AT:
        known = "position, target and optionally up and field_of_view_deg; or viewmat and k"
        raise BadInput(field, f"must have {known}, not {', '.join(sorted(map(str, names)))[:80] or 'none'}")
    position, target = (_vector(found[name], f"{field}.{name}") for name in ("position", "target"))
    up = _vector(found["up"], f"{field}.up") if "up" in found else None
    angle_deg = _number(found.get("field_of_view_deg", 50.0), f"{field}.field_of_view_deg")
    return look_at(position, target, up=up, field_of_view_deg=angle_deg)


def _vector(found: Any, field: str) -> tuple[float, float, float]:
    x, y, z = _numbers(found, 3, field)
    return x, y, z


def _numbers(found: Any, count: int, field: str) -> list[float]:
    if not isinstance(found, list) or len(found) != count:
        raise BadInput(field, f"must be a list of {count} numbers")
    return [_number(value, field) for value in found]


def _number(found: Any, field: str) -> float:
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise BadInput(field, f"must be a number, not {str(found)[:32]!r}")
    try:
        return float(found)
    except OverflowError:
        raise BadInput(field, "is too large a number") from None
