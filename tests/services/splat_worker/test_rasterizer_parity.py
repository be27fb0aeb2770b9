"""Our pixels against gsplat's reference maths, on ordinary and on hostile views.

By each way to draw: our own rasteriser; the one through gsplat with gsplat's torch code in place of its CUDA kernels,
which proves all but those; and where there is a GPU, with them.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from benchmarks.gsplat_reference import Judged, judge, psnr_db, without_cuda
from services.splat_worker.camera import Camera, look_at
from services.splat_worker.gsplat_rasterizer import DeviceScene, View, render
from services.splat_worker.rasterizer import Picture, Rasterizer, expected_depth
from services.splat_worker.scene import Gaussians, Scene, build_scene

SIZE = 96
MIN_PSNR_DB = 60
MAX_SHARE_OFF = 1e-4  # of pixels that differ by more than one step of 255


def cloud(count: int, seed: int = 0, log_scale: float = -2.5, degree: int = 3) -> Gaussians:
    rng = np.random.default_rng(seed)
    return Gaussians(
        means=rng.normal(size=(count, 3)).astype(np.float32),
        quats=rng.normal(size=(count, 4)).astype(np.float32),
        scales=np.exp(rng.normal(log_scale, 0.6, size=(count, 3))).astype(np.float32),
        opacities=rng.uniform(0, 1, count).astype(np.float32),
        sh=(rng.normal(size=(count, (degree + 1) ** 2, 3)) * 0.3).astype(np.float32),
    )


def view(position: tuple[float, float, float] = (0, 0, -4), **other: float) -> Camera:
    size = {"width": SIZE, "height": SIZE} | {k: int(v) for k, v in other.items()}
    return look_at(position, (0.1, 0.2, 0.3), (0, -1, 0), 50, **size)


def stretched(gaussians: Gaussians, factors: tuple[float, float, float]) -> Gaussians:
    return replace(gaussians, scales=gaussians.scales * np.array(factors, dtype=np.float32))


def same_depth(gaussians: Gaussians) -> Gaussians:
    flat = gaussians.means.copy()
    flat[:, 2] = np.round(flat[:, 2])  # whole numbers along a camera axis: many exact ties
    return replace(gaussians, means=flat)


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    """The judge's threads would wait for one another on a busy host, for most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


STRAIGHT = look_at((0, 0, -4), (0, 0, 0), (0, -1, 0), 50, SIZE, SIZE)
CASES: dict[str, tuple[Gaussians, Camera]] = {
    "normal": (cloud(3000), view()),
    "odd size": (cloud(2000), view(width=83, height=37)),
    "inside the cloud": (cloud(3000), view((0.2, 0.1, 0.0))),
    "behind the camera": (cloud(300), look_at((0, 0, 9), (0, 0, 20), (0, -1, 0), 50, SIZE, SIZE)),
    "needles": (stretched(cloud(1500), (30, 0.01, 0.01)), view()),
    "discs": (stretched(cloud(800), (8, 8, 0.001)), view()),
    "huge": (stretched(cloud(60), (200, 300, 250)), view()),
    "opaque": (replace(cloud(2000), opacities=np.ones(2000, np.float32)), view()),
    "faint": (replace(cloud(2000), opacities=np.full(2000, 0.006, np.float32)), view()),
    "equal depths": (same_depth(cloud(2000)), STRAIGHT),
    "one": (cloud(1, seed=3, log_scale=-0.5), view()),
    "none": (cloud(0), view()),
    "far away": (cloud(2000), view((0, 0, -4000))),
    "SH 0": (cloud(1000, degree=0), view()),
    "SH 1": (cloud(1000, degree=1), view()),
    "SH 2": (cloud(1000, degree=2), view()),
}


def check_plane(ours: np.ndarray, theirs: np.ndarray, weight: np.ndarray | float = 1.0) -> None:
    """One output, [height, width] or [height, width, 3], whose values are of about 1. `weight` [height, width]: what a
    pixel's error counts where it is looked for by itself."""
    assert np.isfinite(ours).all()
    assert psnr_db(ours, theirs) >= MIN_PSNR_DB
    off = np.abs(ours - theirs).reshape(*theirs.shape[:2], -1).max(axis=2) * weight > 1 / 255
    assert off.mean() <= MAX_SHARE_OFF


def check(picture: Picture, judged: Judged, *, own: bool = True) -> None:
    """All outputs; depths are compared as shares of the farthest.

    Not our `own`: gsplat's float32 puts a faint splat on the other side of 1/255 in one pixel of thousands. Where
    little else is seen that moves the expected depth, so there an error counts as much as is seen.
    """
    assert picture.depth is not None
    check_plane(picture.rgb, judged.rgb)
    check_plane(picture.alpha, judged.alpha)
    farthest = max(judged.depth.max(), judged.expected_depth.max(), 1.0)
    check_plane(picture.depth / farthest, judged.depth / farthest)
    expected = expected_depth(picture.depth, picture.alpha)
    check_plane(expected / farthest, judged.expected_depth / farthest, 1.0 if own else judged.alpha)


BACKGROUND = (0.2, 0.5, 0.9)
Draw = Callable[..., Picture]
"""Takes a scene, a camera and `sh_degree` or `antialiased`; draws over BACKGROUND, with depth."""


def on_the_cpu(scene: Scene, camera: Camera, **modes: object) -> Picture:
    return Rasterizer(2).render(scene, camera, BACKGROUND, with_depth=True, **modes)


def through_gsplat(scene: Scene, camera: Camera, device: str = "cpu", **modes: object) -> Picture:
    placed = DeviceScene.of(scene, torch.device(device))
    (picture,) = render(placed, [View(camera, BACKGROUND)], with_depth=True, **modes)
    return picture


@pytest.fixture(
    params=[
        "cpu",
        "gsplat",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
    ]
)
def draw(request: pytest.FixtureRequest) -> Iterator[Draw]:
    if request.param == "cpu":
        yield on_the_cpu
    elif request.param == "cuda":
        yield lambda *args, **modes: through_gsplat(*args, device="cuda", **modes)
    else:
        with without_cuda():
            yield through_gsplat


@cache
def judged_case(case: str, antialiased: bool) -> Judged:
    gaussians, camera = CASES[case]
    return judge(build_scene(gaussians), camera, BACKGROUND, antialiased=antialiased)


@pytest.mark.parametrize("antialiased", [False, True], ids=["classic", "antialiased"])
@pytest.mark.parametrize("case", CASES)
def test_pixels_are_gsplats(case: str, antialiased: bool, draw: Draw) -> None:
    gaussians, camera = CASES[case]
    picture = draw(build_scene(gaussians), camera, antialiased=antialiased)
    check(picture, judged_case(case, antialiased), own=draw is on_the_cpu)


def test_a_lower_sh_degree_is_gsplats_too(draw: Draw) -> None:
    scene = build_scene(cloud(1000))
    check(draw(scene, view(), sh_degree=1), judge(scene, view(), BACKGROUND, sh_degree=1))


def test_a_crop_is_a_part_of_gsplats_whole_frame(draw: Draw) -> None:
    # Splats at the frame's edge: there the shape is clamped to the whole frame's limits, not to the crop's.
    scene, whole = build_scene(stretched(cloud(2000), (6, 1, 1))), view((0.5, 0.3, -1.5))
    judged = judge(scene, whole, BACKGROUND)
    for left, top, width, height in ((0, 0, 40, 30), (61, 50, 35, 46), (17, 33, 1, 1)):
        picture = draw(scene, whole.cropped(left, top, width, height))
        rows, columns = slice(top, top + height), slice(left, left + width)
        planes = (judged.rgb, judged.alpha, judged.depth, judged.expected_depth)
        check(picture, Judged(*(plane[rows, columns] for plane in planes)))


def test_depth_is_left_out_unless_it_is_asked_for() -> None:
    scene = build_scene(cloud(500))
    without, within = (Rasterizer(1).render(scene, view(), with_depth=asked) for asked in (False, True))
    assert without.depth is None and within.depth is not None
    assert np.array_equal(without.rgb, within.rgb)


def test_pixels_do_not_depend_on_the_number_of_threads() -> None:
    scene, camera = build_scene(cloud(3000)), view(width=200, height=120)
    one, two = (Rasterizer(threads).render(scene, camera) for threads in (1, 2))
    assert np.array_equal(one.rgb, two.rgb)
    assert np.array_equal(one.alpha, two.alpha)


def test_buffers_that_are_used_again_leave_no_trace() -> None:
    rasterizer, camera = Rasterizer(1), view()
    small, large = build_scene(cloud(50, seed=1)), build_scene(cloud(2000, seed=2))
    fresh = rasterizer.render(small, camera).rgb
    rasterizer.render(large, camera)
    assert np.array_equal(rasterizer.render(small, camera).rgb, fresh)
