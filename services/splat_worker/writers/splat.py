"""Writes .splat: see readers/splat.py. Harmonics above degree 0 have no place in it."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from services.splat_worker.readers.activations import SH_C0
from services.splat_worker.readers.splat import RECORD
from services.splat_worker.scene import FloatArray, Scene


def write_splat(path: Path, scene: Scene) -> None:
    """Colours outside 0 to 1 are clipped."""
    rows = np.zeros(scene.count, RECORD)
    rows["mean"], rows["scale"] = scene.means, scene.scales
    rows["color"][:, :3] = _byte(255 * (0.5 + SH_C0 * scene.sh[:, 0]))
    rows["color"][:, 3] = _byte(255 * scene.opacities)
    rows["quat"] = _byte(128 * scene.quats + 128)
    path.write_bytes(rows.tobytes())


def _byte(values: FloatArray) -> npt.NDArray[np.uint8]:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
