"""`headway scene info` and `headway scene convert`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scene_files
from reading import close_to

from services.splat_worker.camera import look_at
from services.splat_worker.convert import turned_over
from services.splat_worker.rasterizer import Rasterizer
from services.splat_worker.readers import read_scene
from services.splat_worker.scene import Scene, SceneLimits, build_scene
from services.splat_worker.scene_cli import app
from services.splat_worker.writers import WRITERS

GOOD = scene_files.gaussians()
LOSS = {".ply": (1e-6, 1e-5), ".compressed.ply": (4e-3, 0.03), ".spz": (1e-4, 0.04), ".splat": (0, 0.01),
        ".glb": (0, 1e-6)}  # fmt: skip


@pytest.fixture
def ply(tmp_path: Path) -> Path:
    path = tmp_path / "a.ply"
    path.write_bytes(scene_files.ply_bytes(GOOD))
    return path


def run(*arguments: object) -> int:
    return app([str(argument) for argument in arguments], standalone_mode=False) or 0


def read(path: Path) -> Scene:
    return read_scene(path, SceneLimits())


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_that_can_be_written_is_read_again(
    ply: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = ply.parent / "new" / f"b{suffix}"
    assert run("convert", ply, target, "--keep-axes") == 0
    means, sh = LOSS[suffix]
    scene = read(target)
    assert f" {scene.count} gaussians, degree {scene.sh_degree}, " in capsys.readouterr().out
    if suffix == ".splat":
        np.testing.assert_allclose(scene.sh, GOOD.sh[:, :1], atol=sh)
    else:
        close_to(scene, GOOD, means=means, scales=0.04, sh=sh)
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_axes_follow_the_formats_conventions_and_back(ply: Path) -> None:
    run("convert", ply, ply.parent / "b.glb")
    run("convert", ply.parent / "b.glb", ply.parent / "c.ply")
    assert np.allclose(read(ply.parent / "b.glb").means, GOOD.means * [1, -1, -1])
    close_to(read(ply.parent / "c.ply"), GOOD, means=1e-6, scales=1e-5, sh=1e-6)


def test_a_scene_turned_over_looks_the_same_from_a_camera_turned_over() -> None:
    scene = build_scene(GOOD)
    here = look_at((1.0, 2.0, 4.0), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0), 50.0, 64, 64)
    there = look_at((1.0, -2.0, -4.0), (0.0, 0.0, 0.0), (0.0, -1.0, 0.0), 50.0, 64, 64)
    pictures = [Rasterizer(1).render(*pair).rgb for pair in ((scene, here), (turned_over(scene), there))]
    assert np.abs(pictures[0] - pictures[1]).max() < 1e-3


def test_less_is_kept_when_less_is_asked_for(ply: Path) -> None:
    run("convert", ply, ply.parent / "b.ply", "--sh-degree", 1, "--keep", 0.25)
    scene = read(ply.parent / "b.ply")
    assert (scene.count, scene.sh_degree) == (75, 1)
    assert {tuple(mean) for mean in scene.means} <= {tuple(mean) for mean in GOOD.means}


def test_info_tells_what_is_in_a_file(ply: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("info", ply, "--json")
    told = json.loads(capsys.readouterr().out)
    scene = read(ply)
    assert (told["format"], told["gaussians"], told["sh_degree"], told["dropped"]) == ("ply", 300, 3, 0)
    assert (told["file_bytes"], told["hash"]) == (ply.stat().st_size, scene.scene_id)
    assert told["lowest"] == pytest.approx(scene.means.min(axis=0), abs=1e-4)


def test_what_is_wrong_is_said_in_one_line() -> None:
    def through_headway(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "headway.cli.main", "scene", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    missing = through_headway("info", "nothing.ply")
    assert (missing.returncode, missing.stderr) == (4, "nothing.ply: No such file or directory\n")
    unknown = through_headway("convert", "a.ply", "b.sog")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("file: 'b.sog' cannot be written")
