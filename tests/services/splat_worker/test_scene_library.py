"""Which scenes are in memory: budget, least recently used, pins."""

from pathlib import Path

import numpy as np
import pytest
import scene_files
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.errors import NotFound, Shed
from headway.quality import Ladder, Rung
from services.splat_worker.folder import SceneFile, scan
from services.splat_worker.ladder import RankedScene
from services.splat_worker.library import Library, LoadedScene
from services.splat_worker.scene import build_scene
from services.splat_worker.views import default_pose

LADDER = Ladder((Rung(label="100%@1", quality=1.0),))
SCENE = build_scene(scene_files.gaussians(200, 0))


def loaded(name: str, count: int = 100) -> LoadedScene:
    return LoadedScene(name, RankedScene(SCENE.prefix(count), LADDER, default_pose(SCENE)))


def size(count: int = 100) -> int:
    return SCENE.prefix(count).memory_bytes


def put(library: Library, name: str, count: int = 100, *, pin: bool = False) -> None:
    library.make_room(size(count), name)
    library.take(loaded(name, count), SceneFile(name, Path(name), (0, 0, 0)), 1.0).pinned = pin


def in_memory(library: Library) -> list[str]:
    return [entry.facts.name for entry in library if entry.loaded is not None]


def test_the_scene_that_was_not_used_for_longest_goes() -> None:
    library = Library(3 * size())
    for name in "abc":
        put(library, name)
    library.find("a")
    put(library, "d")
    assert in_memory(library) == ["a", "c", "d"]
    assert [entry.facts.name for entry in library] == ["a", "b", "c", "d"]
    assert library.find("b").loaded is None


def test_a_pinned_scene_stays_and_one_that_has_no_room_is_refused_without_harm() -> None:
    library = Library(3 * size())
    put(library, "a", pin=True)
    put(library, "b")
    put(library, "c", count=200)
    assert in_memory(library) == ["a", "c"]
    with pytest.raises(Shed, match="pinned"):
        library.make_room(3 * size(), "d")
    assert in_memory(library) == ["a", "c"]


def test_a_scene_makes_way_for_its_own_successor() -> None:
    library = Library(2 * size())
    put(library, "a", pin=True)
    library.make_room(size(200), "a")
    library.take(loaded("a", 200), SceneFile("a", Path("a"), (1, 1, 1)), 1.0)
    assert (in_memory(library), library.loaded_bytes) == (["a"], size(200))
    assert library.find("a").pinned


def test_scenes_are_found_by_name_or_hash_and_the_first_by_default() -> None:
    library = Library(10 * size())
    put(library, "a")
    put(library, "b")
    assert [library.find(name).facts.name for name in ("", "b", SCENE.scene_id)] == ["a", "b", "a"]
    library.remove("a")
    with pytest.raises(NotFound, match="known: b"):
        library.find("a")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["put", "pin", "use", "drop"]), st.integers(1, 200)))
)
def test_the_budget_holds_whatever_happens(steps: list[tuple[str, str, int]]) -> None:
    library = Library(size(220))
    for name, what, count in steps:
        pinned = {entry.facts.name for entry in library if entry.pinned and entry.loaded}
        try:
            if what in ("put", "pin"):
                put(library, name, count, pin=what == "pin")
            elif what == "use":
                library.find(name)
            elif name in library:
                library.remove(name)
        except (Shed, NotFound):
            pass
        assert library.loaded_bytes <= size(220)
        assert pinned - {name} <= set(in_memory(library))


def test_the_folder_is_scanned_by_name(tmp_path: Path) -> None:
    for name in ("b.ply", "a.compressed.ply", "a.splat", ".hidden.ply", "notes.txt", "bad name.ply", "c.glb"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "d.ply").mkdir()
    files = scan(tmp_path)
    assert [(name, file.path.name) for name, file in files.items()] == [
        ("a", "a.compressed.ply"), ("b", "b.ply"), ("c", "c.glb")]  # fmt: skip
    (tmp_path / "b.ply").write_bytes(np.zeros(9, np.uint8).tobytes())
    assert {name for name, file in scan(tmp_path).items() if files[name] != file} == {"b"}
