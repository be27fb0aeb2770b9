"""Our pixels against gsplat's reference maths, on ordinary and on hostile views."""

from dataclasses import replace

import numpy as np
import pytest
from gsplat_judge import judge, psnr_db

from services.splat_worker.camera import Camera, look_at
from services.splat_worker.rasterizer import Rasterizer
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


def check(scene: Scene, camera: Camera, threads: int, sh_degree: int | None = None) -> None:
    background = (0.2, 0.5, 0.9)
    picture = Rasterizer(threads).render(scene, camera, background, sh_degree)
    rgb, alpha = judge(scene, camera, background, sh_degree)
    for ours, theirs in ((picture.rgb, rgb), (picture.alpha, alpha)):
        assert np.isfinite(ours).all()
        assert psnr_db(ours, theirs) >= MIN_PSNR_DB
        off = np.abs(ours - theirs).reshape(camera.width * camera.height, -1).max(axis=1) > 1 / 255
        assert off.mean() <= MAX_SHARE_OFF


@pytest.mark.parametrize("case", CASES)
def test_pixels_are_gsplats(case: str) -> None:
    gaussians, camera = CASES[case]
    check(build_scene(gaussians), camera, threads=2)


def test_a_lower_sh_degree_is_gsplats_too() -> None:
    check(build_scene(cloud(1000)), view(), threads=1, sh_degree=1)


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
