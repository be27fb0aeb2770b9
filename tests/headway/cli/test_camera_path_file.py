"""Camera paths as files."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.cli.camera_path import MAX_FILE_BYTES, read_camera_path
from headway.errors import BadInput

KEY = {"position": [0, 1.5, 4], "target": [0, 0, 0]}
MATRICES = {"viewmat": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1], "k": [50, 0, 32, 0, 50, 32, 0, 0, 1]}


def written(folder: Path, found: Any) -> Path:
    file = folder / "path.json"
    file.write_text(found if isinstance(found, str) else json.dumps(found))
    return file


def test_a_file_says_cameras_and_what_lies_between(tmp_path: Path) -> None:
    keys = [KEY, KEY | {"up": [0, 0, 1], "field_of_view_deg": 30}, MATRICES]
    found = read_camera_path(written(tmp_path, {"cameras": keys, "frames_between": 9, "frames_per_second": 24}))
    assert (found.frames, found.frames_per_second) == (21, 24)
    first, second, third = found.cameras
    assert (first.look_at.position.z, first.look_at.HasField("up"), first.look_at.field_of_view_deg) == (4, False, 50)
    assert (second.look_at.up.z, second.look_at.field_of_view_deg) == (1, 30)
    assert list(third.matrices.k) == MATRICES["k"]
    alone = read_camera_path(written(tmp_path, {"cameras": [KEY]}))
    assert (alone.frames, alone.frames_per_second) == (1, None)


@pytest.mark.parametrize(
    ("found", "field"),
    [
        ("{", "path"),
        ("[" * 100_000, "path"),
        ([], "path.cameras"),
        ({"cameras": []}, "path.cameras"),
        ({"cameras": [KEY] * 1025}, "path.cameras"),
        ({"cameras": [KEY], "frames_between": -1}, "path.frames_between"),
        ({"cameras": [KEY], "frames_between": 1.5}, "path.frames_between"),
        ({"cameras": [KEY], "frames_between": True}, "path.frames_between"),
        ({"cameras": [KEY], "frames_per_second": 0}, "path.frames_per_second"),
        ({"cameras": [KEY], "frames_per_second": "30"}, "path.frames_per_second"),
        ({"cameras": [KEY, 7]}, "path.cameras[1]"),
        ({"cameras": [{"position": [0, 0, 1]}]}, "path.cameras[0]"),
        ({"cameras": [KEY | {"roll": 3}]}, "path.cameras[0]"),
        ({"cameras": [KEY | {"target": [0, 0]}]}, "path.cameras[0].target"),
        ({"cameras": [KEY | {"up": [0, 0, 10**400]}]}, "path.cameras[0].up"),
        ({"cameras": [MATRICES | {"k": [1] * 8}]}, "path.cameras[0].k"),
    ],
)
def test_bad_files_are_refused_by_field(tmp_path: Path, found: Any, field: str) -> None:
    with pytest.raises(BadInput) as refused:
        read_camera_path(written(tmp_path, found))
    assert list(refused.value.violations) == [field]


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    file = written(tmp_path, " " * (MAX_FILE_BYTES + 1))
    with pytest.raises(BadInput):
        read_camera_path(file)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*KEY, "up", "k", "cameras"]), inner),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(found=VALUES)
def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, found: Any) -> None:
    file = written(tmp_path_factory.mktemp("path"), {"cameras": [found], "frames_between": found})
    with pytest.raises(BadInput):
        read_camera_path(file)
