"""The command line against a whole mesh of real processes, as a user runs it."""

import json
import os
import signal
from pathlib import Path

import pytest
from conftest import Mesh, headway
from PIL import Image

from headway.cli.topology import PARTS
from headway.cli.up import with_free_port


def test_all_parts_run_and_the_router_sees_the_workers(mesh: Mesh) -> None:
    assert set(mesh.state().pids) == set(PARTS)
    told = headway("status", "--json", "--address", mesh.address)
    answer = json.loads(told.stdout)
    assert told.returncode == 0
    assert {worker["kind"] for worker in answer["workers"]} == {"KIND_TEXT", "KIND_IMAGE", "KIND_SPLAT"}
    assert {worker["health"] for worker in answer["workers"]} == {"WORKER_HEALTH_HEALTHY"}
    assert answer["prefix_cache_reachable"] is True
    assert "healthy" in headway("status", "--address", mesh.address).stdout


def test_text_streams_to_standard_output_and_notes_go_elsewhere(mesh: Mesh) -> None:
    done = headway("text", "This module provides", "--max-tokens", 12, "--seed", 1, "--address", mesh.address)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) >= 2
    assert "plan: rung" in done.stderr
    assert "served: rung" in done.stderr
    assert "plan:" not in done.stdout


def test_images_are_written_each_under_its_number_and_label(mesh: Mesh, tmp_path: Path) -> None:
    done = headway("image", "--label", 7, "--n", 9, "-o", tmp_path / "out", "--address", mesh.address)
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == [f"{index:03d}-label7.png" for index in range(9)]
    for file in files:
        with Image.open(file) as image:
            assert (image.format, image.size) == ("PNG", (8, 8))


def test_a_frame_is_written_in_the_format_of_its_name(mesh: Mesh, tmp_path: Path) -> None:
    status = json.loads(headway("status", "--json", "--address", mesh.address).stdout)
    (scene,) = [worker["assets"][0] for worker in status["workers"] if worker["kind"] == "KIND_SPLAT"]
    for name, found in (("a.png", "PNG"), ("a.jpg", "JPEG")):
        size = ("--width", 96, "--height", 64)
        done = headway("render", scene, "-o", tmp_path / name, *size, "--address", mesh.address)
        assert done.returncode == 0, done.stderr
        with Image.open(tmp_path / name) as image:
            assert (image.format, image.size) == (found, (96, 64))


def test_a_path_becomes_a_video_or_a_folder_of_frames(mesh: Mesh, tmp_path: Path) -> None:
    keys = [{"position": [x, 1.5, 4], "target": [0, 0.5, 0]} for x in (-1, 1)]
    path = tmp_path / "path.json"
    path.write_text(json.dumps({"cameras": keys, "frames_between": 3}))
    given = ("--path", path, "--width", 96, "--height", 64, "--deadline", "20s", "--address", mesh.address)
    film = headway("render", "still-life", "-o", tmp_path / "film.mp4", "--fps", 5, *given)
    assert film.returncode == 0, film.stderr
    assert "of 5 frames" in film.stderr
    assert (tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"
    frames = headway("render", "still-life", "-o", tmp_path / "frames", "--format", "jpeg", *given)
    assert frames.returncode == 0, frames.stderr
    files = sorted((tmp_path / "frames").iterdir())
    assert [file.name for file in files] == [f"frame-{index:05d}.jpeg" for index in range(5)]
    with Image.open(files[0]) as image:
        assert (image.format, image.size) == ("JPEG", (96, 64))


def test_refusals_are_typed_and_have_their_exit_codes(mesh: Mesh, tmp_path: Path) -> None:
    at = ("--address", mesh.address)
    hopeless = headway("render", "x", "-o", tmp_path / "x.png", "--deadline", "1ms", *at)
    assert hopeless.returncode in {2, 3}, hopeless.stderr
    unknown = headway("render", "no-such-scene", "-o", tmp_path / "x.png", *at)
    assert (unknown.returncode, "NOT_FOUND" in unknown.stderr) == (2, True)
    label = headway("image", "--label", 99999, *at)
    assert (label.returncode, "label" in label.stderr) == (2, True)
    rung = headway("image", "--label", 1, "--exact", "no-such-rung", "-o", tmp_path / "o", *at)
    assert (rung.returncode, "NO_SUCH_RUNG" in rung.stderr) == (2, True)


def test_a_second_mesh_in_the_same_folder_is_refused(mesh: Mesh) -> None:
    again = headway("up", "--run-dir", mesh.run_folder, "--listen", "127.0.0.1:0")
    assert (again.returncode, "a mesh runs already" in again.stderr) == (4, True)


def test_nothing_outlives_a_killed_mesh(tmp_path_factory: pytest.TempPathFactory) -> None:
    mesh = Mesh(with_free_port("127.0.0.1:0"), tmp_path_factory.mktemp("k") / "run")
    started = headway("up", "--detach", "--listen", mesh.address, "--run-dir", mesh.run_folder)
    assert started.returncode == 0, started.stderr
    state = mesh.state()
    os.kill(state.pid, signal.SIGKILL)
    for _ in range(200):
        left = [name for name, pid in state.pids.items() if Path(f"/proc/{pid}").exists()]
        if not left:
            return
        signal.sigtimedwait([], 0.05)
    pytest.fail(f"still running: {left}")


def test_a_missing_model_ends_the_start_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    done = headway("up", "--models", tmp_path / "models", "--listen", "127.0.0.1:0", "--run-dir", tmp_path / "run")
    assert done.returncode == 4
    assert "did not start (exit code" in done.stderr
    assert str(tmp_path / "models") in done.stderr


def test_the_demo_shows_what_deadlines_buy_and_leaves_nothing(tmp_path: Path) -> None:
    done = headway("demo", "-o", tmp_path / "out", timeout_s=230)
    assert done.returncode == 0, done.stderr
    written = {file.suffix for file in (tmp_path / "out").iterdir()}
    assert {".png", ".svg", ".log"} <= written
    assert "in time" in done.stdout
    assert "Everything that was started has ended." in done.stdout
