"""A scene's ladder: gaussians in order of importance, and rungs with the quality that was measured.

A rung is a share of the gaussians and a share of the side length. Importance is the largest blending weight that a
gaussian has in any pixel of a spread of views; stored in that order, a level is a prefix. PSNR and SSIM to the top rung
are measured on other cameras than those, after scaling up, in 8-bit pixels: what the caller gets.
"""

import hashlib
import json
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headway.device import DeviceClient
from headway.engine import Device
from headway.quality import Ladder, Rung
from services.splat_worker.camera import Camera
from services.splat_worker.encode import Pixels, scale_up, to_pixels
from services.splat_worker.likeness import psnr_db, ssim
from services.splat_worker.rasterizer import Rasterizer
from services.splat_worker.scene import FloatArray, Scene
from services.splat_worker.views import Pose, inside, orbit

Order = npt.NDArray[np.int64]
Progress = Callable[[str, float], None]
"""Told a stage ("order" or "ladder") and the share of it that is done, 0 to 1, on the thread that measures. What it
raises ends the measurement, and nothing is cached."""

# Gaussians and sides in turn: near each other in quality, far apart in cost.
SETTINGS = (
    (1.0, 1.0), (0.85, 1.0), (0.85, 0.75), (0.7, 0.75), (0.7, 0.5), (0.5, 0.5), (0.35, 0.5),
    (0.25, 0.375), (0.15, 0.25),
)  # fmt: skip
ORDER_VIEWS, INSIDE_VIEWS, ORDER_PX = 32, 8, 256
SUBSET = 0.3  # share of the scene in the random subset that a view is of
SCORE_VIEWS, SCORE_PX = 6, 384
_ORDER_START, _SCORE_START = 0.0, 0.37  # shares of a turn: no camera is in both sets
_WORST_DB, _SPAN_DB = 20.0, 25.0
_CACHE_VERSION = 2


@dataclass(frozen=True)
class RankedScene:
    """A scene whose gaussians are in order of importance, with its ladder."""

    scene: Scene
    ladder: Ladder
    home: Pose

    def at(self, rung: Rung) -> Scene:
        """The gaussians of a rung: a prefix."""
        return self.scene.prefix(self.count(rung))

    def count(self, rung: Rung) -> int:
        """How many gaussians a rung has; at least one."""
        return level_count(self.scene, 1.0 if rung.gaussian_share is None else rung.gaussian_share)


def level_count(scene: Scene, share: float) -> int:
    """How many gaussians a share of the scene is; at least one."""
    return max(1, round(share * scene.count))


class Bench:
    """Where a scene is measured: a rasteriser that holds the device for one frame at a time."""

    def __init__(self, rasterizer: Rasterizer, device: Device | None = None) -> None:
        self._rasterizer, self._device = rasterizer, device or DeviceClient(None)

    def pixels(self, level: Scene, camera: Camera, scale: float) -> Pixels:
        """The frame as the caller would get it: rendered at `scale` and scaled up."""
        with self._device.lease(due_s=time.monotonic() + 1, label="ladder"):
            picture = self._rasterizer.render(level, camera.scaled(scale))
            return scale_up(to_pixels(picture.rgb), camera.width, camera.height)

    def weights(self, level: Scene, camera: Camera) -> FloatArray:
        """See `Rasterizer.blend_weights`."""
        with self._device.lease(due_s=time.monotonic() + 1, label="ladder"):
            return self._rasterizer.blend_weights(level, camera)


def unwatched(stage: str, share: float) -> None:
    """The progress that nobody follows."""


def rank(
    scene: Scene, home: Pose, bench: Bench, cache: Path | None = None, progress: Progress = unwatched
) -> RankedScene:
    """Order the scene and measure its ladder around `home`, or take both from `cache` (a folder), by the scene's hash.

    Blocks for seconds on a large scene that is not cached. A damaged cache entry is measured anew and replaced.
    """
    entry = None if cache is None else cache / f"{scene.scene_id}-{_measurement_key(home)}.npz"
    known = None if entry is None else _load(entry, scene.count)
    if known is None:
        order = importance_order(scene, home, bench, progress)
        known = order, measure(scene.permuted(order), home, bench, progress)
        if entry is not None:
            _store(entry, *known)
    order, ladder = known
    return RankedScene(scene.permuted(order), ladder, home)


def importance_order(scene: Scene, home: Pose, bench: Bench, progress: Progress = unwatched) -> Order:
    """Gaussians [count] by falling importance; ties (the unseen) by what they could cover, then by index.
    Deterministic."""
    rng = np.random.default_rng(0)
    seen = np.zeros(scene.count, dtype=np.float32)
    poses = orbit(home, ORDER_VIEWS, _ORDER_START) + inside(home, INSIDE_VIEWS)
    for done, pose in enumerate(poses):
        progress("order", done / len(poses))
        subset = np.sort(rng.permutation(scene.count)[: max(1, round(SUBSET * scene.count))])
        covered = bench.weights(scene.permuted(subset), pose.camera(ORDER_PX, ORDER_PX))
        seen[subset] = np.maximum(seen[subset], covered)
    progress("order", 1.0)
    could = scene.opacities * np.sort(scene.scales, axis=1)[:, 1:].prod(axis=1)
    order: Order = np.lexsort((-could, -could * seen)).astype(np.int64)
    return order


def measure(ranked: Scene, home: Pose, bench: Bench, progress: Progress = unwatched) -> Ladder:
    """The ladder of a scene in order of importance; rungs that are no better than a cheaper one are left out."""
    cameras = [pose.camera(SCORE_PX, SCORE_PX) for pose in orbit(home, SCORE_VIEWS, _SCORE_START)]
    tops = [bench.pixels(ranked, camera, 1.0) for camera in cameras]
    rungs = [Rung(label=_label(1.0, 1.0), quality=1.0, gaussian_share=1.0, resolution_scale=1.0)]
    for done, (share, scale) in enumerate(SETTINGS[1:], start=1):
        progress("ladder", done / len(SETTINGS))
        level = ranked.prefix(level_count(ranked, share))
        frames = [bench.pixels(level, camera, scale) for camera in cameras]
        psnr = psnr_db(frames, tops)
        rungs.append(
            Rung(
                label=_label(share, scale),
                quality=round(normalised(psnr), 4),
                psnr_db=round(psnr, 2),
                ssim=round(float(np.mean([ssim(*pair) for pair in zip(frames, tops, strict=True)])), 4),
                gaussian_share=share,
                resolution_scale=scale,
            )
        )
    progress("ladder", 1.0)
    return Ladder(tuple(rung for index, rung in enumerate(rungs) if _is_best(rung, rungs[index + 1 :])))


def normalised(psnr_db: float) -> float:
    """Normalised quality of a frame with this PSNR to the top rung: (PSNR - 20 dB) / 25 dB, clipped."""
    return min(max((psnr_db - _WORST_DB) / _SPAN_DB, 0.0), 1.0)


def _is_best(rung: Rung, cheaper: list[Rung]) -> bool:
    return all(rung.quality > other.quality for other in cheaper)


def _label(share: float, scale: float) -> str:
    return f"{share * 100:g}%@{scale:g}"


def _measurement_key(home: Pose) -> str:
    """What else the result depends on, as part of a file name."""
    settings = (
        _CACHE_VERSION,
        asdict(home),
        SETTINGS,
        ORDER_VIEWS,
        INSIDE_VIEWS,
        ORDER_PX,
        SUBSET,
        SCORE_VIEWS,
        SCORE_PX,
    )
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _store(entry: Path, order: Order, ladder: Ladder) -> None:
    """Written aside and moved into place: a reader never sees half an entry."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    aside = entry.with_suffix(".part")
    rungs = json.dumps([asdict(rung) for rung in ladder.rungs])
    with aside.open("wb") as file:
        np.savez(file, order=order.astype(np.int32), rungs=np.frombuffer(rungs.encode(), dtype=np.uint8))
    aside.replace(entry)


def _load(entry: Path, count: int) -> tuple[Order, Ladder] | None:
    """The entry, or None when there is none that can be used."""
    if not entry.exists():
        return None
    try:
        with entry.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            order = stored["order"].astype(np.int64)
            rungs = json.loads(stored["rungs"].tobytes())
        ladder = Ladder(tuple(Rung(**rung) for rung in rungs))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    is_permutation = order.shape == (count,) and np.array_equal(np.sort(order), np.arange(count))
    return (order, ladder) if is_permutation else None
