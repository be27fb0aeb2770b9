"""Which scenes a worker has, which of them are in memory, and who must go when others need the room. Decides; loads
nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from headway.errors import NotFound, Shed
from headway.quality import Ladder
from headway.worker import LoadedAsset
from services.splat_worker.folder import SceneFile
from services.splat_worker.ladder import RankedScene
from services.splat_worker.views import Pose


class LibraryError(Exception):
    """No scene can be served; the message says why."""


class Placed(Protocol):
    """A scene's gaussians where they are drawn, when that is not the host's memory."""

    @property
    def memory_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class LoadedScene:
    """A scene that can be named in requests."""

    name: str
    ranked: RankedScene
    placed: Placed | None = None
    """Gone with the last reference to this: an eviction frees a device as soon as no frame in flight needs it."""

    @property
    def hash(self) -> str:
        return self.ranked.scene.scene_id

    @property
    def memory_bytes(self) -> int:
        """On the host and on a device."""
        return self.ranked.scene.memory_bytes + (0 if self.placed is None else self.placed.memory_bytes)

    @property
    def asset(self) -> LoadedAsset:
        """As plans and answers name it."""
        return LoadedAsset(self.name, self.hash, self.ranked.ladder)


@dataclass(frozen=True, slots=True)
class SceneFacts:
    """What stays known of a scene when it is not in memory."""

    name: str
    hash: str
    gaussians: int
    dropped: int
    sh_degree: int
    memory_bytes: int
    ladder: Ladder
    home: Pose

    @property
    def asset(self) -> LoadedAsset:
        """As a worker describes it."""
        return LoadedAsset(self.name, self.hash, self.ladder)


@dataclass(slots=True)
class Entry:
    """A scene in service."""

    facts: SceneFacts
    file: SceneFile
    loaded: LoadedScene | None
    """None while it is evicted."""
    reload_s: float
    """What the next load should take, from the last."""
    used: int = 0
    """Grows with every use, over all entries."""
    pinned: bool = False


def facts_of(scene: LoadedScene) -> SceneFacts:
    """What to remember of a scene."""
    gaussians = scene.ranked.scene
    return SceneFacts(
        name=scene.name,
        hash=scene.hash,
        gaussians=gaussians.count,
        dropped=gaussians.dropped,
        sh_degree=gaussians.sh_degree,
        memory_bytes=scene.memory_bytes,
        ladder=scene.ranked.ladder,
        home=scene.ranked.home,
    )


class Library:
    """The scenes in service, within a budget of memory. Belongs to one thread."""

    def __init__(self, memory_bytes: int) -> None:
        """`memory_bytes`: most that loaded scenes may take together; frames in flight may keep an old one beside."""
        self._memory_bytes = memory_bytes
        self._entries: dict[str, Entry] = {}
        self._uses = 0

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def loaded_bytes(self) -> int:
        return sum(entry.facts.memory_bytes for entry in self if entry.loaded is not None)

    def find(self, name: str) -> Entry:
        """The scene of this name or hash, the first when `name` is empty; it counts as used now. Raises NotFound."""
        for entry in self:
            if name in ("", entry.facts.name, entry.facts.hash):
                self._uses += 1
                entry.used = self._uses
                return entry
        raise NotFound("scene", name, [entry.facts.name for entry in self])

    def has_room(self, scene_bytes: int, name: str) -> bool:
        """Whether a scene fits as it is; the one of its own name, which it replaces, does not count."""
        return self._taken_beside(name) + scene_bytes <= self._memory_bytes

    def make_room(self, scene_bytes: int, name: str) -> None:
        """Evicts what was not used for longest and is not pinned, until a scene fits.

        Raises Shed, and evicts nothing, when that would not do.
        """
        pinned = sum(e.facts.memory_bytes for e in self if e.pinned and e.loaded and e.facts.name != name)
        if pinned + scene_bytes > self._memory_bytes:
            raise Shed(
                f"scene {name!r} takes {scene_bytes} bytes and pinned scenes {pinned}; "
                f"scene_memory_mb allows {self._memory_bytes} bytes"
            )
        evictable = [entry for entry in self if entry.loaded and not entry.pinned and entry.facts.name != name]
        for entry in sorted(evictable, key=lambda each: each.used):
            if self.has_room(scene_bytes, name):
                return
            entry.loaded = None

    def take(self, scene: LoadedScene, file: SceneFile, reload_s: float, *, keep: bool = True) -> Entry:
        """Puts a scene into service, in place of the one of its name; without `keep` it stays evicted."""
        old = self._entries.get(scene.name)
        self._uses += 1
        entry = Entry(facts_of(scene), file, scene if keep else None, reload_s, self._uses)
        if old is not None:
            entry.pinned = old.pinned
        self._entries[scene.name] = entry
        return entry

    def remove(self, name: str) -> None:
        """Takes a scene out of service."""
        del self._entries[name]

    def _taken_beside(self, name: str) -> int:
        return self.loaded_bytes - sum(e.facts.memory_bytes for e in self if e.loaded and e.facts.name == name)
