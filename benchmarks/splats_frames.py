"""Frame times of the CPU rasteriser: `python -m benchmarks.splats_frames [--quick]`.

Pixels are compared with gsplat's torch reference first; nothing is reported when they disagree. Then, over views that
no ladder was measured on: time against gaussians, pixels and threads, the reference in the same run, memory, quality
against cost for each level, how well a linear model foretells a frame, and a restart with compiled code cached. The
full run takes about 4 minutes on two free cores. Writes benchmarks/results/splats-frames.json and .png.
"""

import argparse
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.figures import interval, quantile, write
from benchmarks.gsplat_reference import judge, psnr_db
from benchmarks.splats_plot import plot
from services.splat_worker.camera import Camera
from services.splat_worker.card import read_cards
from services.splat_worker.ladder import RankedScene
from services.splat_worker.rasterizer import Rasterizer, max_threads
from services.splat_worker.readers import read_scene
from services.splat_worker.recipe.still_life import build
from services.splat_worker.scene import Scene, SceneLimits, build_scene
from services.splat_worker.views import Pose, orbit

NAME = "splats-frames"
SCENES = Path(__file__).parents[1] / "models" / "scenes"
MIN_PSNR_DB, MAX_SHARE_OFF = 60, 1e-4
VIEWS_START = 0.53  # a share of a turn, away from the cameras of the order (0), the ladder (0.37) and the costs (0.61)
_RESTART = """
import time
start = time.perf_counter()
from benchmarks.splats_frames import shipped
from services.splat_worker.rasterizer import Rasterizer
ranked = shipped()
Rasterizer(1).render(ranked.scene, ranked.home.camera(512, 512))
print(time.perf_counter() - start)
"""


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    gaussians: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    largest: tuple[int, int, int]
    """Gaussians, width and height of the one large frame."""
    views: int
    repeats: int
    reference_runs: int
    threads: int
    """Most that are used; gsplat's reference uses as many."""


FULL = Plan(
    gaussians=(25_000, 50_000, 100_000, 200_000, 400_000, 1_000_000),
    sizes=((256, 256), (512, 512), (768, 768), (1024, 1024), (1920, 1080)),
    largest=(2_000_000, 1920, 1080),
    views=5,
    repeats=6,
    reference_runs=3,
    threads=max_threads(),
)
QUICK = Plan(
    (5_000, 10_000), ((96, 96), (128, 128)), (30_000, 160, 90), views=2, repeats=2, reference_runs=1, threads=1
)


@dataclass(frozen=True)
class Sample:
    """One frame: what it was made of and what it took."""

    visible: int
    pairs: int
    pixels: int
    project_ms: float
    bin_ms: float
    blend_ms: float
    frame_ms: float


@dataclass(frozen=True)
class Row:
    """One point of a figure: medians over views and repeats."""

    gaussians: int
    width: int
    height: int
    threads: int
    frames: int
    median_ms: float
    interval_ms: tuple[float, float]
    fastest_ms: float
    p95_ms: float
    project_ms: float
    bin_ms: float
    blend_ms: float
    visible: float
    pairs: float


class Disagreement(Exception):
    """Our pixels are not the reference's: there is nothing to report."""


def shipped() -> RankedScene:
    """The scene that ships, as a worker loads it."""
    card = read_cards(SCENES)["still-life"]
    assert card.ladder is not None
    return RankedScene(read_scene(SCENES / "still-life.spz", SceneLimits()), card.ladder, card.home)


def cameras(home: Pose, count: int, width: int, height: int) -> list[Camera]:
    return [pose.camera(width, height) for pose in orbit(home, count, VIEWS_START)]


def measure(rasterizer: Rasterizer, scene: Scene, views: Sequence[Camera], repeats: int) -> list[Sample]:
    """Frames over the views in turn; the first round is not counted."""
    return [sample for round_ in range(repeats + 1) for sample in _round(rasterizer, scene, views) if round_ > 0]


def _round(rasterizer: Rasterizer, scene: Scene, views: Sequence[Camera]) -> Iterator[Sample]:
    for camera in views:
        start = time.perf_counter()
        picture = rasterizer.render(scene, camera)
        frame_ms = (time.perf_counter() - start) * 1000
        assert picture.stages is not None
        stages = (picture.stages.project_ms, picture.stages.bin_ms, picture.stages.blend_ms)
        yield Sample(picture.visible, picture.pairs, camera.width * camera.height, *stages, frame_ms)


def row(scene: Scene, views: Sequence[Camera], threads: int, samples: Sequence[Sample]) -> Row:
    frames = [sample.frame_ms for sample in samples]
    low, high = interval(frames)
    medians = {
        name: round(statistics.median(getattr(sample, name) for sample in samples), 3)
        for name in ("project_ms", "bin_ms", "blend_ms", "visible", "pairs")
    }
    return Row(
        gaussians=scene.count,
        width=views[0].width,
        height=views[0].height,
        threads=threads,
        frames=len(frames),
        median_ms=round(statistics.median(frames), 3),
        interval_ms=(round(low, 3), round(high, 3)),
        fastest_ms=round(min(frames), 3),
        p95_ms=round(quantile(frames, 0.95), 3),
        **medians,
    )


def timed_row(scene: Scene, home: Pose, size: tuple[int, int], threads: int, plan: Plan) -> tuple[Row, list[Sample]]:
    views = cameras(home, plan.views, *size)
    samples = measure(Rasterizer(threads), scene, views, plan.repeats)
    found = row(scene, views, threads, samples)
    print(
        f"{found.gaussians} gaussians, {size[0]} x {size[1]}, {threads} threads: {found.median_ms:.1f} ms", flush=True
    )
    return found, samples


def against_reference(ranked: RankedScene, size: tuple[int, int], plan: Plan) -> dict[str, Any]:
    """gsplat's torch reference in float32 beside ours, the same view and threads. Raises Disagreement."""
    camera = cameras(ranked.home, 1, *size)[0]
    torch.set_num_threads(plan.threads)
    rasterizer = Rasterizer(plan.threads)
    picture = rasterizer.render(ranked.scene, camera)
    truth = judge(ranked.scene, camera)
    agreement_db = psnr_db(picture.rgb, truth.rgb)
    share_off = float((np.abs(picture.rgb - truth.rgb).max(axis=2) > 1 / 255).mean())
    if agreement_db < MIN_PSNR_DB or share_off > MAX_SHARE_OFF:
        raise Disagreement(f"PSNR {agreement_db:.1f} dB, {share_off:.1e} of the pixels off by over 1/255")
    theirs_ms, ours_ms = [], []
    for _ in range(plan.reference_runs):
        start = time.perf_counter()
        judge(ranked.scene, camera, dtype=torch.float32)
        theirs_ms.append((time.perf_counter() - start) * 1000)
        ours_ms += [sample.frame_ms for sample in measure(rasterizer, ranked.scene, [camera], plan.repeats)]
    ours, theirs = statistics.median(ours_ms), statistics.median(theirs_ms)
    print(f"gsplat's torch reference: {theirs:.0f} ms, ours {ours:.1f} ms: {theirs / ours:.0f} times", flush=True)
    return {
        "size": size,
        "psnr_db": agreement_db,
        "share_off": share_off,
        "reference_ms": theirs,
        "ours_ms": ours,
        "times": theirs / ours,
    }


def memory(scene: Scene, camera: Camera, threads: int) -> dict[str, float]:
    """Most memory of a rasteriser that draws the scene for the first time, the scene included, over the scene's."""
    tracemalloc.start()
    Rasterizer(threads).render(scene, camera)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "gaussians": scene.count,
        "scene_bytes": scene.memory_bytes,
        "working_bytes": peak,
        "times_scene": (scene.memory_bytes + peak) / scene.memory_bytes,
    }


def levels(ranked: RankedScene, size: tuple[int, int], plan: Plan) -> tuple[list[dict[str, Any]], list[Sample]]:
    """Quality, as on the card, against cost for each rung; and the samples."""
    rasterizer, rows, samples = Rasterizer(plan.threads), list[dict[str, Any]](), list[Sample]()
    for rung in ranked.ladder.rungs:
        views = [view.scaled(rung.resolution_scale or 1.0) for view in cameras(ranked.home, plan.views, *size)]
        found = measure(rasterizer, ranked.at(rung), views, plan.repeats)
        samples += found
        rows.append(
            {"rung": rung.label, "quality": rung.quality, "psnr_db": rung.psnr_db, "ssim": rung.ssim}
            | {"median_ms": statistics.median(sample.frame_ms for sample in found)}
        )
    return rows, samples


def cost_model(samples: Sequence[Sample]) -> dict[str, Any]:
    """A linear model of the frame over visible gaussians, pairs and pixels: fitted on every other sample, judged on the
    rest."""
    inputs = np.array([(1, sample.visible, sample.pairs, sample.pixels) for sample in samples], dtype=np.float64)
    times = np.array([sample.frame_ms for sample in samples])
    # Errors count relative to the frame: a small frame's deadline is as near as a large one's.
    weights = 1 / times[::2]
    factors, *_ = np.linalg.lstsq(inputs[::2] * weights[:, None], times[::2] * weights, rcond=None)
    predicted, actual = inputs[1::2] @ factors, times[1::2]
    errors = (np.abs(predicted - actual) / actual).tolist()
    return {
        "base_ms": float(factors[0]),
        "us_per_visible": float(factors[1]) * 1e3,
        "us_per_pair": float(factors[2]) * 1e3,
        "ns_per_pixel": float(factors[3]) * 1e6,
        "r2": 1 - float(((predicted - actual) ** 2).sum() / ((actual - actual.mean()) ** 2).sum()),
        "median_error": statistics.median(errors),
        "p95_error": quantile(errors, 0.95),
        "samples": len(samples),
    }


def slope(sizes: Sequence[float], times_ms: Sequence[float]) -> float:
    """ms for each unit of size: the line with the least squares."""
    return float(np.polyfit(sizes, times_ms, 1)[0])


def restart_s() -> float:
    """Seconds from a fresh interpreter's first line to the scene's first frame, with compiled code cached."""
    done = subprocess.run([sys.executable, "-c", _RESTART], check=True, capture_output=True, text=True)
    return float(done.stdout)


def run(quick: bool = False) -> dict[str, Any]:
    """All figures of frames by themselves, and their plot. Raises Disagreement."""
    plan, ranked = QUICK if quick else FULL, shipped()
    threads = plan.threads
    middle = plan.sizes[1]
    reference = against_reference(ranked, middle, plan)
    by_gaussians, samples = [], list[Sample]()
    for count in plan.gaussians:
        found, more = timed_row(build_scene(build(count, 7)), ranked.home, middle, threads, plan)
        by_gaussians.append(found)
        samples += more
    by_pixels = [timed_row(ranked.scene, ranked.home, size, threads, plan)[0] for size in plan.sizes]
    by_threads = [timed_row(ranked.scene, ranked.home, middle, count, plan)[0] for count in range(1, threads + 1)]
    count, width, height = plan.largest
    largest_scene = build_scene(build(count, 7))
    largest, _ = timed_row(largest_scene, ranked.home, (width, height), threads, plan)
    by_level, more = levels(ranked, middle, plan)
    figures = {
        "quick": quick,
        "reference": reference,
        "by_gaussians": [asdict(each) for each in by_gaussians],
        "by_pixels": [asdict(each) for each in by_pixels],
        "by_threads": [asdict(each) for each in by_threads],
        "largest": asdict(largest),
        "ms_per_million_gaussians": slope(
            [each.gaussians / 1e6 for each in by_gaussians], [each.median_ms for each in by_gaussians]
        ),
        "ms_per_megapixel": slope(
            [each.width * each.height / 1e6 for each in by_pixels], [each.median_ms for each in by_pixels]
        ),
        "memory": [
            memory(each, cameras(ranked.home, 1, *middle)[0], threads) for each in (ranked.scene, largest_scene)
        ],
        "levels": by_level,
        "cost_model": cost_model(samples + more),
        "restart_s": restart_s(),
    }
    plot(figures, NAME)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.splats_frames", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes and few frames, to see that it works")
    figures = run(parser.parse_args().quick)
    for name in ("ms_per_million_gaussians", "ms_per_megapixel", "cost_model", "memory", "restart_s"):
        print(name, figures[name])
    print(write(NAME, figures))


if __name__ == "__main__":
    main()
