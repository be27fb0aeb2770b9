"""Makes a scene of a file: read, order and ladder, costs. Blocks, and gives way to rendering at every piece of work."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from headway.calibration import Curves, Soon, calibrated
from headway.engine import Device, Lease
from services.splat_worker import costs
from services.splat_worker.card import SceneCard, read_cards
from services.splat_worker.costs import SceneCosts
from services.splat_worker.encode import Encoding
from services.splat_worker.folder import SceneFile
from services.splat_worker.ladder import Bench, Progress, RankedScene, rank
from services.splat_worker.library import LoadedScene
from services.splat_worker.rasterizer import Rasterizer
from services.splat_worker.readers import read_scene, up_of
from services.splat_worker.reading import Stopped, read_apart
from services.splat_worker.renderer import Renderer
from services.splat_worker.scene import Scene, SceneLimits
from services.splat_worker.views import default_pose

log = logging.getLogger(__name__)

_PATIENCE_S = 60.0
_LEAST_PATIENCE_S = 2.0
_BREATH_S = 0.001
CALIBRATE = "calibrate"


class Unhurried:
    """A device whose leases come after nearly all other work for a minute, and then like work that is due in 2 s:
    else a load would never end where frames never do."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._due_s = 0.0

    @property
    def soon(self) -> Soon:
        """For a probe of a worker that starts again on a busy device, and serves nothing yet."""
        return Soon(self._device)

    def begin(self) -> None:
        """A load begins."""
        self._due_s = time.monotonic() + _PATIENCE_S

    @contextmanager
    def lease(self, *, due_s: float, label: str, keep: bool = False) -> Iterator[Lease]:
        """As the device's own, but due when the load is, and never kept."""
        # Without an arbiter a lease is a lock, which its last holder would take again before who waits for it wakes up.
        time.sleep(_BREATH_S)
        with self._device.lease(due_s=max(self._due_s, time.monotonic() + _LEAST_PATIENCE_S), label=label) as lease:
            yield lease

    def rest(self) -> None:
        """Nothing is kept."""

    def hurry(self, due_s: float) -> None:
        """A load never does."""

    def declare(self, demand: object, *, step_end_s: float | None = None) -> None:
        """A load demands nothing by any time."""

    def others(self) -> tuple[tuple[float, float], ...]:
        """Not asked: a load plans nothing."""
        return ()

    @property
    def busy_until_s(self) -> None:
        """Not asked either."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A scene that is ready to be served."""

    scene: LoadedScene
    costs: SceneCosts


class Loader:
    """Loads scenes, one at a time, on whichever thread calls."""

    def __init__(
        self, folder: Path, limits: SceneLimits, make_renderer: Callable[[], Renderer], device: Device, cache: Path
    ) -> None:
        """`make_renderer` makes those of the kind that serves."""
        self._folder, self._limits, self._cache = folder, limits, cache
        self._make_renderer, self._device = make_renderer, Unhurried(device)
        self._renderer = make_renderer()  # places scenes; what draws is made for each load, for its memory ends with it
        self.stopping = threading.Event()
        """Set it to end a load at its next piece of work."""

    def memory_bytes(self, scene: Scene) -> int:
        """What a scene will take, on the host and where it is drawn."""
        return scene.memory_bytes + self._renderer.beside_bytes(scene)

    def read(self, file: SceneFile, apart: bool) -> Scene:
        """The gaussians of a file; `apart`: read in a process of its own, so that frames go on meanwhile.

        Raises BadInput, OSError and Stopped.
        """
        scene = read_apart(file.path, self._limits, self.stopping) if apart else read_scene(file.path, self._limits)
        if scene.dropped:
            log.warning(
                "scene %s: %d gaussians are not finite or degenerate and were dropped", file.name, scene.dropped
            )
        return scene

    def prepare(
        self, file: SceneFile, scene: Scene, known: Mapping[str, SceneCosts], progress: Progress, *, serving: bool
    ) -> Prepared:
        """Ranks a scene, places it where it is drawn and measures what it costs; what card, cache or `known` (by hash)
        say is not measured. `serving`: all of it gives way to frames.

        `progress` is told on this thread. Raises BadInput for a card that is no good or a device that is too small,
        and Stopped.
        """

        def told(stage: str, share: float) -> None:
            if self.stopping.is_set():
                raise Stopped
            progress(stage, share)

        self._device.begin()
        card = read_cards(self._folder).get(file.name)
        ranked = self._ranked(file, scene, card, told)
        loaded = LoadedScene(file.name, ranked, self._renderer.place(ranked.scene))
        told(CALIBRATE, 0.0)
        return Prepared(loaded, known.get(loaded.hash) or self._costs(loaded, serving))

    def _ranked(self, file: SceneFile, scene: Scene, card: SceneCard | None, progress: Progress) -> RankedScene:
        """By its card where that was made for this very scene, else measured now or as cached."""
        if card is not None and card.ladder is not None and card.scene_id == scene.scene_id:
            return RankedScene(scene, card.ladder, card.home)
        home = default_pose(scene, up_of(file.path)) if card is None else card.home
        return rank(scene, home, self._bench(), self._cache, progress)

    def _bench(self) -> Bench:
        """On the host, whatever serves: so a ladder is one everywhere, and kept for all. A GPU is not held for it."""
        device = self._device if self._renderer.device == "cpu" else None
        return Bench(Rasterizer(self._renderer.threads), device)

    def _costs(self, scene: LoadedScene, serving: bool) -> SceneCosts:
        with closing(self._make_renderer()) as renderer:
            curves = self._calibrated(scene, renderer, self._device if serving else self._device.soon)
        found = costs.scene_costs(curves)
        for size in found.gang_sizes:
            share = 100 * found.side_by_side(size)
            log.info("scene %s: %d frames side by side take %.0f %% of in turn", scene.name, size, share)
        return found

    def _calibrated(self, scene: LoadedScene, renderer: Renderer, probed: Device) -> Curves:
        labels = ",".join(rung.label for rung in scene.ranked.ladder.rungs)
        encodings = ",".join(encoding.value for encoding in Encoding)
        built = (renderer.engine, renderer.build, scene.hash, str(renderer.threads))
        return calibrated(
            self._cache,
            key=("splat 2", *built, str(scene.ranked.home), labels, encodings),
            measure=partial(costs.measure, scene, renderer, self._device),
            probe=partial(costs.probe, scene, renderer, probed),
        )
