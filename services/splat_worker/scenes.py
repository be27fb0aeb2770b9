"""The scenes of a running worker: loads, unloads, evicts and swaps them, and follows the scene folder.

Everything here runs on the event loop; what blocks runs in one thread, one load at a time. A frame holds its scene by
reference, so a scene that is swapped, evicted or unloaded lives on until the last frame of it is done.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from headway.deadline import Budget, Clock
from headway.errors import BadInput, Failed, HeadwayError, NotFound, Shed
from services.splat_worker.costs import SceneCosts
from services.splat_worker.folder import SceneFile, scan
from services.splat_worker.library import Entry, Library, LibraryError, LoadedScene
from services.splat_worker.loading import CALIBRATE, Loader
from services.splat_worker.readers import SUFFIXES
from services.splat_worker.reading import Stopped

log = logging.getLogger(__name__)

T = TypeVar("T")
WAIT, READ = "wait", "read"
_STARTS = {WAIT: (0.0, 0.0), READ: (0.0, 0.1), "order": (0.1, 0.5), "ladder": (0.6, 0.2), CALIBRATE: (0.8, 0.2)}
"""Where a stage begins in the whole of a load, and its share of it: about what they take on a scene that is new."""
_LEAST_RETRY_S = 0.1
_MOST_COSTS = 256


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a load is."""

    stage: str
    share: float
    """Of the whole load, 0 to 1."""


@dataclass(slots=True, eq=False)
class _Load:
    """A load that was asked for, perhaps by several."""

    file: SceneFile
    began_s: float
    expected_s: float
    progress: Progress = Progress(WAIT, 0.0)
    followers: list[asyncio.Queue[Progress | None]] = field(default_factory=list)
    """Are told each step, and None at the end."""
    task: "asyncio.Task[LoadedScene | HeadwayError] | None" = None

    def tell(self, stage: str, share: float) -> None:
        start, width = _STARTS[stage]
        self.progress = Progress(stage, start + width * share)
        for follower in self.followers:
            follower.put_nowait(self.progress)


class Scenes:
    """See the module. Make it inside the event loop; `close` it at the end."""

    def __init__(
        self, folder: Path, library: Library, loader: Loader, clock: Clock, *, most: int, most_bytes: int
    ) -> None:
        """`most`: scenes in service. `most_bytes`: the library's budget, for scenes that are larger than all of it."""
        self._folder, self._library, self._loader, self._clock = folder, library, loader, clock
        self._most, self._most_bytes = most, most_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scenes")
        self._turn = asyncio.Lock()
        self._loads: dict[str, _Load] = {}
        self._refused: dict[str, SceneFile] = {}
        """Files that are not to be loaded by themselves: damaged ones, and those that were unloaded."""
        self.costs: dict[str, SceneCosts] = {}
        """By hash; also of scenes that are gone, whose frames may still be in flight."""
        self.changed: Callable[[], None] = lambda: None
        """Called when what can be asked for has changed."""

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The scenes in service; the first is the default."""
        return tuple(self._library)

    def entry(self, name: str) -> Entry:
        """The scene of this name or hash; it counts as used now. Raises NotFound."""
        return self._library.find(name)

    async def start(self) -> None:
        """Loads all files of the folder, in the order of their names. Those beyond the budget are evicted again: from
        then on they are known, and load when they are asked for. Raises LibraryError when none can be served."""
        try:
            files = await asyncio.to_thread(scan, self._folder)
        except OSError as error:
            raise LibraryError("is not a folder" if not self._folder.is_dir() else str(error)) from error
        if len(files) > self._most:
            raise LibraryError(f"holds {len(files)} scenes; max_scenes is {self._most}")
        problems = []
        for file in files.values():
            outcome = await _task(self._begin(file, serving=False))
            if isinstance(outcome, HeadwayError):
                problems.append(f"{file.path.name}: {outcome.message}")
        if not self.entries:
            raise LibraryError("; ".join(problems) or f"holds no file that ends in {' or '.join(SUFFIXES)}")
        for entry in reversed(self.entries):
            self._library.find(entry.facts.name)  # the first are the last to go

    async def find(self, name: str, budget: Budget) -> LoadedScene:
        """The scene of this name or hash; one that was evicted is loaded when the budget allows.

        Raises NotFound, and Shed with the time to come back where the load would take too long: it is begun all the
        same.
        """
        entry = self._library.find(name)
        if entry.loaded is not None:
            return entry.loaded
        load = self._begin(entry.file)
        left_s, room_s = self._left_s(load), budget.remaining_s(self._clock())
        if left_s < room_s:
            with suppress(TimeoutError):
                async with asyncio.timeout(room_s):
                    return self._found(name, entry, await asyncio.shield(_task(load)))
        raise Shed(
            f"scene {entry.facts.name!r} is not in memory; it is loading",
            retry_after_s=max(self._left_s(load), _LEAST_RETRY_S),
        )

    def _found(self, name: str, entry: Entry, outcome: LoadedScene | HeadwayError) -> LoadedScene:
        """What a caller who asked for a frame gets of a load: that the file is no good now is not the caller's mistake,
        and a hash that was asked for must be that of the scene."""
        if isinstance(outcome, BadInput):
            raise Failed(f"scene {entry.facts.name!r} is not in memory, and cannot be loaded again: {outcome.message}")
        scene = _result(outcome)
        if name not in ("", scene.name, scene.hash):
            raise NotFound("scene", name, [each.facts.name for each in self.entries])
        return scene

    async def load(self, name: str, *, pin: bool) -> AsyncGenerator[Progress, None]:
        """Loads a file of the folder, or what it has become, and yields how far that is.

        Raises NotFound, BadInput for a file that is no good, and Shed when pinned scenes leave no room.
        """
        files = await asyncio.to_thread(scan, self._folder)
        file = files.get(name)
        if file is None:
            raise NotFound("scene", name, list(files))
        entry = self._library.find(name) if name in self._library else None
        if entry is None or entry.loaded is None or entry.file != file:
            if name not in self._library and len(self.entries) >= self._most:
                raise BadInput("scene", f"max_scenes is {self._most}; unload one first")
            load = self._begin(file)
            async with aclosing(_following(load)) as steps:
                async for step in steps:
                    yield step
            _result(await asyncio.shield(_task(load)))
        self._library.find(name).pinned = pin

    async def unload(self, name: str) -> None:
        """Takes a scene out of service until it is loaded again or its file changes. Raises BadInput and NotFound."""
        if not name:
            raise BadInput("scene", "must be given: there is no default for what to unload")
        entry = self._library.find(name)
        self._refused[entry.facts.name] = entry.file
        self._library.remove(entry.facts.name)
        self.changed()

    async def follow_folder(self, interval_s: float) -> None:
        """Loads files that are new or have changed, and drops scenes whose files are gone, until cancelled.

        A file counts once two looks in a row saw it alike: one that is being copied is left alone.
        """
        before = await self._looked()
        while True:
            await asyncio.sleep(interval_s)
            now = await self._looked()
            if now is None or before is None:
                before = now
                continue
            for file in now.values():
                if before.get(file.name) == file and self._is_news(file):
                    await _task(self._begin(file))
            for entry in self.entries:
                if entry.facts.name not in now and entry.facts.name not in before:
                    log.info("scene %s: its file is gone", entry.facts.name)
                    self._library.remove(entry.facts.name)
                    self.changed()
            before = now

    async def close(self) -> None:
        """Ends a load at its next piece of work."""
        self._loader.stopping.set()
        loads = [_task(load) for load in self._loads.values()]
        await asyncio.gather(*loads, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    async def _looked(self) -> dict[str, SceneFile] | None:
        try:
            return await asyncio.to_thread(scan, self._folder)
        except OSError as error:
            log.warning("the scene folder cannot be read: %s", error)
            return None

    def _is_news(self, file: SceneFile) -> bool:
        if self._refused.get(file.name) == file:
            return False
        known = next((entry for entry in self.entries if entry.facts.name == file.name), None)
        if known is None and len(self.entries) >= self._most:
            self._refused[file.name] = file
            log.error("scene %s is left out: max_scenes is %d", file.name, self._most)
            return False
        return known is None or known.file != file

    def _begin(self, file: SceneFile, *, serving: bool = True) -> _Load:
        """The load of a file: the one that runs already, else a new one behind those that do. Its task never raises:
        an error is its result. `serving`: frames must go on meanwhile, and what is asked for now goes before what was
        loaded earlier."""
        load = self._loads.get(file.name)
        if load is None or load.file != file:
            known = next((entry.reload_s for entry in self.entries if entry.file == file), 0.0)
            ahead_s = sum(self._left_s(other) for other in self._loads.values())
            load = _Load(file, self._clock(), ahead_s + known)
            load.task = asyncio.create_task(self._run(load, serving))
            self._loads[file.name] = load
        return load

    def _left_s(self, load: _Load) -> float:
        return max(0.0, load.began_s + load.expected_s - self._clock())

    async def _run(self, load: _Load, serving: bool) -> LoadedScene | HeadwayError:
        name = load.file.name
        try:
            async with self._turn:
                scene = await self._loaded(load, serving)
            self._refused.pop(name, None)
            return scene
        except Stopped:
            return Failed("the worker ends")
        except (HeadwayError, OSError) as error:
            self._refused[name] = load.file
            return _refusal(load.file, error)
        except Exception as error:  # one bad file must not end the worker
            self._refused[name] = load.file
            log.exception("loading scene %s failed", load.file.path.name)
            return Failed(f"loading scene {name!r} failed: {type(error).__name__}")
        finally:
            if self._loads.get(name) is load:
                del self._loads[name]
            for follower in load.followers:
                follower.put_nowait(None)

    async def _loaded(self, load: _Load, serving: bool) -> LoadedScene:
        file, start_s = load.file, self._clock()
        load.tell(READ, 0.0)
        scene = await self._in_thread(self._loader.read, file, serving)
        read_s = self._clock() - start_s
        needed_bytes = self._loader.memory_bytes(scene)
        if needed_bytes > self._most_bytes:
            raise BadInput("scene", f"takes {needed_bytes} bytes; scene_memory_mb allows {self._most_bytes}")
        if serving:
            self._library.make_room(needed_bytes, file.name)
        is_known = scene.scene_id in self.costs
        told = asyncio.get_running_loop().call_soon_threadsafe
        prepare = partial(self._loader.prepare, serving=serving)
        prepared = await self._in_thread(prepare, file, scene, dict(self.costs), lambda *step: told(load.tell, *step))
        self._keep_costs(prepared.scene.hash, prepared.costs)
        # A first load also measures; what repeats is reading, and putting into the known order.
        reload_s = self._clock() - start_s if is_known else 2 * read_s
        fits = self._library.has_room(needed_bytes, file.name)
        self._library.take(prepared.scene, file, reload_s, keep=fits)
        self.changed()
        return prepared.scene

    def _keep_costs(self, scene_hash: str, costs: SceneCosts) -> None:
        """Adds them; forgets the oldest of scenes that are gone when there are many."""
        self.costs[scene_hash] = costs
        served = {entry.facts.hash for entry in self.entries}
        gone = [known for known in self.costs if known not in served and known != scene_hash]
        for known in gone[: max(0, len(self.costs) - _MOST_COSTS)]:
            del self.costs[known]

    async def _in_thread(self, call: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)


async def _following(load: _Load) -> AsyncGenerator[Progress, None]:
    """How far a load is, until it is over."""
    follower: asyncio.Queue[Progress | None] = asyncio.Queue()
    load.followers.append(follower)
    yield load.progress
    while (step := await follower.get()) is not None:
        yield step


def _refusal(file: SceneFile, error: HeadwayError | OSError) -> HeadwayError:
    """What is wrong with a file, for its callers and the log."""
    log.error("scene %s is not loaded: %s", file.path.name, error)
    if isinstance(error, OSError):
        return BadInput("scene", f"{file.path.name} cannot be read: {error.strerror}")
    return error


def _task(load: _Load) -> "asyncio.Task[LoadedScene | HeadwayError]":
    assert load.task is not None  # set when the load is made
    return load.task


def _result(outcome: LoadedScene | HeadwayError) -> LoadedScene:
    if isinstance(outcome, HeadwayError):
        raise outcome
    return outcome
