"""Reads bytes as scene files and compares scenes, for the tests of the formats."""

from pathlib import Path

import numpy as np
import pytest

from headway.errors import BadInput
from services.splat_worker.readers import read_scene
from services.splat_worker.scene import Gaussians, Scene, SceneLimits

LIMITS = SceneLimits(max_gaussians=1000, max_file_bytes=1 << 20)


def read(folder: Path, name: str, data: bytes, limits: SceneLimits = LIMITS) -> Scene:
    path = folder / name
    path.write_bytes(data)
    return read_scene(path, limits)


def refusal(folder: Path, name: str, data: bytes) -> dict[str, str]:
    with pytest.raises(BadInput) as refused:
        read(folder, name, data)
    return refused.value.violations


def close_to(scene: Scene, truth: Gaussians, *, means: float, scales: float, sh: float) -> None:
    assert scene.dropped == 0
    np.testing.assert_allclose(scene.means, truth.means, atol=means)
    np.testing.assert_allclose(np.log(scene.scales), np.log(truth.scales), atol=scales)
    np.testing.assert_allclose(scene.opacities, truth.opacities, atol=0.01)
    np.testing.assert_allclose(scene.sh, truth.sh, atol=sh)
    alike = np.abs((scene.quats * truth.quats).sum(axis=1))  # q and -q turn alike
    np.testing.assert_allclose(alike, 1, atol=0.005)
