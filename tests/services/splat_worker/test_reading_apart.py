"""Reading in a process of its own gives what reading here gives, errors too."""

import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import scene_files

from headway.errors import BadInput
from services.splat_worker.readers import read_scene
from services.splat_worker.reading import Stopped, read_apart
from services.splat_worker.scene import ARRAY_NAMES, SceneLimits

LIMITS = SceneLimits(max_gaussians=1000)


def test_the_scene_and_the_refusals_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    path.write_bytes(scene_files.small(0))
    here, there = read_scene(path, LIMITS), read_apart(path, LIMITS, threading.Event())
    assert (here.scene_id, here.dropped) == (there.scene_id, there.dropped)
    for name in ARRAY_NAMES:
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name))
        assert not getattr(there, name).flags.writeable
    path.write_bytes(scene_files.small(0)[:-1])
    refusals = []
    for read in (lambda: read_scene(path, LIMITS), lambda: read_apart(path, LIMITS, threading.Event())):
        with pytest.raises(BadInput) as refused:
            read()
        refusals.append(refused.value.violations)
    assert refusals[0] == refusals[1]
    with pytest.raises(FileNotFoundError):
        read_apart(tmp_path / "b.ply", LIMITS, threading.Event())


def test_a_reader_that_dies_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, broken = tmp_path / "a.ply", tmp_path / "broken"
    path.write_bytes(scene_files.small(0))
    broken.write_text(f"#!{sys.executable}\nimport os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(BadInput, match="ended with -11"):
        read_apart(path, LIMITS, threading.Event())


def test_a_worker_that_ends_does_not_wait_for_it(tmp_path: Path) -> None:
    path, stopping = tmp_path / "a.ply", threading.Event()
    path.write_bytes(scene_files.small(0))
    stopping.set()
    with pytest.raises(Stopped):
        read_apart(path, LIMITS, stopping)
