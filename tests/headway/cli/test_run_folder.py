import contextlib
import os
import stat
from pathlib import Path

import pytest

from headway.cli.run_folder import RunFolder, RunFolderError, State, default_run_folder


def test_the_folder_is_private(tmp_path: Path) -> None:
    path = tmp_path / "a" / "run"
    path.mkdir(parents=True, mode=0o755)
    assert stat.S_IMODE(RunFolder(path).path.stat().st_mode) == 0o700


def test_a_folder_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(RunFolderError, match=name):
            RunFolder(tmp_path / name)


def test_one_mesh_at_a_time_and_the_state_goes_with_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    state = State(os.getpid(), "127.0.0.1:1", True, {"router": 7})
    with folder.held():
        folder.write(state)
        assert (folder.state(), folder.is_held()) == (state, True)
        with (
            pytest.raises(RunFolderError, match=rf"process {os.getpid()}, 127\.0\.0\.1:1.*headway down"),
            folder.held(),
        ):
            pass
    assert (folder.state(), folder.is_held()) == (None, False)


def test_a_failure_leaves_no_state(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with contextlib.suppress(ZeroDivisionError), folder.held():
        folder.write(State(1, "127.0.0.1:1", False))
        raise ZeroDivisionError
    assert (folder.state(), folder.is_held()) == (None, False)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"strange": 1}', "7"])
def test_a_damaged_state_is_no_state(tmp_path: Path, text: str) -> None:
    folder = RunFolder(tmp_path / "run")
    (folder.path / "state.json").write_text(text)
    assert folder.state() is None


def test_the_default_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_run_folder() == tmp_path / "headway"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    assert default_run_folder().name == f"headway-{os.getuid()}"
