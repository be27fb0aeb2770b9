"""The formats that store logarithms of scales and logits of opacities, written by gsply."""

import math
from pathlib import Path

import gsply
import numpy as np

from services.splat_worker.scene import Scene

_LEAST_SCALE, _LEAST_OPACITY = 1e-12, 1e-6  # logarithms and logits of less are infinite or lost in float32
SPZ_VERSION = 3
"""Not 4: of the readers in use in 2026, many do not know it."""
_SPZ_POSITION_BITS, _MOST_FRACTION_BITS = 23, 16


def write_ply(path: Path, scene: Scene) -> None:
    """INRIA's layout, float32."""
    gsply.plywrite(path, _stored(scene))


def write_compressed_ply(path: Path, scene: Scene) -> None:
    """PlayCanvas' layout: chunks of 256 gaussians."""
    path.write_bytes(gsply.compress_to_bytes(_stored(scene)))


def write_spz(path: Path, scene: Scene) -> None:
    """SPZ 3, with as many bits behind the point as the farthest gaussian leaves."""
    reach = float(np.abs(scene.means).max(initial=0.0))
    bits = min(_MOST_FRACTION_BITS, _SPZ_POSITION_BITS - math.ceil(math.log2(reach + 1)))
    gsply.use_backend("auto")
    gsply.write_spz(path, _stored(scene), version=SPZ_VERSION, fractional_bits=max(1, bits))


def _stored(scene: Scene) -> "gsply.GSData":
    opacities = np.clip(scene.opacities.astype(np.float64), _LEAST_OPACITY, 1 - _LEAST_OPACITY)
    return gsply.GSData.from_arrays(
        means=scene.means,
        scales=np.log(np.maximum(scene.scales, _LEAST_SCALE)),
        quats=scene.quats,
        opacities=np.log(opacities / (1 - opacities)).astype(np.float32),
        sh0=np.ascontiguousarray(scene.sh[:, 0]),
        shN=np.ascontiguousarray(scene.sh[:, 1:]),
        format="ply",
    )
