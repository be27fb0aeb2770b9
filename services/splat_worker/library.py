"""The scenes of a worker: every file in its folder that can be read, ranked, by name."""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headway.errors import BadInput
from services.splat_worker.card import SceneCard, read_cards
from services.splat_worker.ladder import Bench, RankedScene, rank
from services.splat_worker.readers import SUFFIXES, read_scene
from services.splat_worker.scene import Scene, SceneLimits
from services.splat_worker.views import default_pose

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class LibraryError(Exception):
    """No scene can be served; the message says why."""


@dataclass(frozen=True, slots=True)
class LoadedScene:
    """A scene that can be named in requests."""

    name: str
    ranked: RankedScene

    @property
    def hash(self) -> str:
        return self.ranked.scene.scene_id


def load_library(
    folder: Path, limits: SceneLimits, most: int, bench: Bench, cache: Path | None
) -> tuple[LoadedScene, ...]:
    """All scenes of the folder, by name. Blocks.

    A file that is no good is left out and logged with its reason: it must not keep the others from being served.
    Raises LibraryError when the folder, its card, or all of its files are no good.
    """
    if not folder.is_dir():
        raise LibraryError("is not a folder")
    try:
        cards = read_cards(folder)
    except (BadInput, OSError) as error:
        raise LibraryError(str(error)) from error
    paths = list(_scene_files(folder))
    if len(paths) > most:
        raise LibraryError(f"holds {len(paths)} scenes; max_scenes is {most}")
    loaded, problems = [], []
    for name, path in paths:
        try:
            loaded.append(_load(name, path, limits, cards.get(name), bench, cache))
        except (BadInput, OSError) as error:
            problems.append(f"{path.name}: {error}")
            log.error("scene %s is left out: %s", path.name, error)
    if not loaded:
        raise LibraryError("; ".join(problems) or f"holds no file that ends in {' or '.join(SUFFIXES)}")
    return tuple(loaded)


def _scene_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and file of each scene, in order of their names; the first file of a name counts."""
    seen: set[str] = set()
    for path in sorted(folder.iterdir()):
        name = path.name.removesuffix(path.suffix).removesuffix(".compressed")
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        if not _NAME.fullmatch(name) or name in seen:
            log.error("scene %r is left out: its name is taken or not of letters, digits, dot, dash", path.name)
            continue
        seen.add(name)
        yield name, path


def _load(
    name: str, path: Path, limits: SceneLimits, card: SceneCard | None, bench: Bench, cache: Path | None
) -> LoadedScene:
    scene = read_scene(path, limits)
    if scene.dropped:
        log.warning("scene %s: %d gaussians are not finite or degenerate and were dropped", name, scene.dropped)
    return LoadedScene(name, _ranked(scene, card, bench, cache))


def _ranked(scene: Scene, card: SceneCard | None, bench: Bench, cache: Path | None) -> RankedScene:
    """By its card where that was made for this very scene, else measured now or as cached."""
    if card is not None and card.ladder is not None and card.scene_id == scene.scene_id:
        return RankedScene(scene, card.ladder, card.home)
    return rank(scene, default_pose(scene) if card is None else card.home, bench, cache)
