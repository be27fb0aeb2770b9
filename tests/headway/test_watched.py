"""Files that change while they are watched, by a clock that the test steps."""

import os
from pathlib import Path

import pytest

from headway.watched import LOOK_S, Watched


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_change_is_seen_at_the_next_look_and_not_before(tmp_path: Path) -> None:
    path, clock = tmp_path / "file", Clock()
    path.write_text("1")
    watched = Watched("name", [path], lambda: int(path.read_text()), clock=clock)
    path.write_text("22")
    clock.now_s = LOOK_S / 2
    assert watched.value() == 1
    clock.now_s = LOOK_S
    assert watched.value() == 22


def test_a_link_that_points_elsewhere_is_a_change(tmp_path: Path) -> None:
    """As Kubernetes replaces the files of a secret."""
    clock, link = Clock(), tmp_path / "file"
    for name in ("1", "2"):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (0, 0))
    link.symlink_to("1")
    watched = Watched("name", [link], lambda: link.read_text(), clock=clock)
    (tmp_path / "next").symlink_to("2")
    (tmp_path / "next").replace(link)
    clock.now_s = LOOK_S
    assert watched.value() == "2"


@pytest.mark.parametrize("text", [None, "not a number"])
def test_what_cannot_be_read_leaves_what_was_and_is_tried_again(tmp_path: Path, text: str | None) -> None:
    path, clock = tmp_path / "file", Clock()
    path.write_text("1")
    watched = Watched("name", [path], lambda: int(path.read_text()), clock=clock)
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    clock.now_s += LOOK_S
    assert watched.value() == 1
    path.write_text("333")
    clock.now_s += LOOK_S
    assert watched.value() == 333


def test_what_is_wrong_at_first_is_raised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Watched("name", [tmp_path / "none"], lambda: None)
