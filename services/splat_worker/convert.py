"""A scene made ready for another format: fewer gaussians, fewer harmonics, other axes."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from services.splat_worker.ladder import Bench, importance_order, level_count
from services.splat_worker.readers import up_of
from services.splat_worker.readers.sh_rotation import rotated_sh
from services.splat_worker.scene import SH_COEFFICIENTS, Scene
from services.splat_worker.views import default_pose
from services.splat_worker.writers import NO_HARMONICS, writer_of

_HALF_TURN = np.diag([1.0, -1.0, -1.0])  # about x: what was down is up, what was ahead is behind


def converted(
    scene: Scene, source: Path, target: Path, *, sh_degree: int | None, keep: float, keep_axes: bool, bench: Bench
) -> Scene:
    """The scene as `target` should hold it, and can; `keep` (a share) leaves the most important gaussians. Blocks."""
    if keep < 1:
        order = importance_order(scene, default_pose(scene, up_of(source)), bench)
        scene = scene.permuted(order[: level_count(scene, keep)])
    if writer_of(target)[0] in NO_HARMONICS:
        sh_degree = 0
    if sh_degree is not None and sh_degree < scene.sh_degree:
        scene = replace(scene, sh=np.ascontiguousarray(scene.sh[:, : SH_COEFFICIENTS[sh_degree]]))
    turns = not keep_axes and up_of(source) != up_of(target)
    return turned_over(scene) if turns else scene


def turned_over(scene: Scene) -> Scene:
    """The scene after half a turn about x; the same gaussians after two."""
    w, x, y, z = scene.quats.T
    return replace(
        scene,
        means=scene.means * np.array([1, -1, -1], np.float32),
        quats=np.stack([-x, w, -z, y], axis=1),
        sh=rotated_sh(scene.sh, _HALF_TURN),
    )
