"""What launches of several views and hostile ones come to, with gsplat's torch code in place of its CUDA kernels.

That its pixels are right, view by view, is shown beside our own rasteriser's in test_rasterizer_parity.py.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_rasterizer_parity import cloud, view

from benchmarks.gsplat_reference import without_cuda
from headway.errors import BadInput
from services.splat_worker import gsplat_rasterizer
from services.splat_worker.camera import Camera
from services.splat_worker.gsplat_rasterizer import DeviceScene, View, render
from services.splat_worker.rasterizer import Picture, Rasterizer
from services.splat_worker.scene import Gaussians, Scene, build_scene

CPU = torch.device("cpu")
MANY = [
    View(view((0, 0, -4)), (0.1, 0.2, 0.3)),
    View(view((3, 1, -2)), (1.0, 1.0, 0.0)),
    View(view((0, 0, -4)), (0.9, 0.0, 0.0)),
]


@pytest.fixture(autouse=True)
def torch_kernels() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with without_cuda():
        yield
    torch.set_num_threads(threads)


def drawn(scene: Scene, *views: View, **modes: object) -> list[Picture]:
    return render(DeviceScene.of(scene, CPU), views, **modes)


def same(one: Picture, other: Picture) -> bool:
    planes = ((one.rgb, other.rgb), (one.alpha, other.alpha), (one.depth, other.depth))
    return all(np.array_equal(*pair) for pair in planes)


def test_views_of_one_launch_are_what_they_are_alone() -> None:
    scene = build_scene(cloud(800))
    for modes in ({"with_depth": True}, {"with_depth": True, "antialiased": True, "sh_degree": 1}):
        together = drawn(scene, *MANY, **modes)
        alone = [drawn(scene, each, **modes)[0] for each in MANY]
        assert all(same(*pair) for pair in zip(together, alone, strict=True))
        assert [each.pairs for each in together] == [each.pairs for each in alone]
        assert not np.array_equal(together[0].rgb, together[1].rgb)


def test_crops_of_one_launch_may_lie_anywhere_in_their_frames() -> None:
    scene, whole = build_scene(cloud(800)), view()
    crops = [whole.cropped(left, top, 40, 30) for left, top in ((0, 0), (56, 66), (17, 33))]
    (full,) = drawn(scene, View(whole), with_depth=True)
    for crop, picture in zip(crops, drawn(scene, *map(View, crops), with_depth=True), strict=True):
        left, top = (round(crop.cx), round(crop.cy))
        rows, columns = slice(48 - top, 78 - top), slice(48 - left, 88 - left)
        assert np.allclose(picture.rgb, full.rgb[rows, columns], atol=1e-4)
        assert np.allclose(picture.depth, full.depth[rows, columns], atol=1e-3)


@pytest.mark.parametrize("scale", [0.75, 0.375])
def test_a_crop_on_a_smaller_frame_is_what_the_cpu_draws(scale: float) -> None:
    stretched = cloud(1500)
    stretched = replace(stretched, scales=stretched.scales * np.float32(5))  # much of it beyond the frame's edges
    scene, camera = build_scene(stretched), view().cropped(5, 7, 61, 53).scaled(scale)
    (ours,) = drawn(scene, View(camera))
    assert np.allclose(ours.rgb, Rasterizer(1).render(scene, camera).rgb, atol=1 / 255)


def test_a_level_is_a_prefix() -> None:
    scene = build_scene(cloud(800))
    level = DeviceScene.of(scene, CPU).prefix(200)
    assert level.memory_bytes * 4 == DeviceScene.of(scene, CPU).memory_bytes == scene.memory_bytes
    (prefix,) = render(level, [View(view())], with_depth=True)
    (alone,) = drawn(scene.prefix(200), View(view()), with_depth=True)
    assert same(prefix, alone)


def test_no_gaussians_are_drawn_without_gsplat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsplat.fully_fused_projection", None)  # it divides by their number, which ends the process
    (picture,) = drawn(build_scene(cloud(0)), MANY[0], with_depth=True)
    assert (picture.rgb == np.float32(MANY[0].background)).all()
    assert not picture.alpha.any() and not picture.depth.any()


def test_a_shape_that_leaves_float32_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import gsplat

    project = gsplat.fully_fused_projection

    def saturated(*arguments: object, **more: object) -> tuple[torch.Tensor, ...]:
        """On a GPU a radius beyond int32 becomes the greatest, not the least, and no NaN is left out."""
        radii, means2d, depths, conics, rest = project(*arguments, **more)
        passes = (radii == torch.iinfo(torch.int32).min) | conics.isnan().any(-1, keepdim=True)
        return torch.where(passes, torch.iinfo(torch.int32).max, radii), means2d, depths, conics, rest

    monkeypatch.setattr(gsplat, "fully_fused_projection", saturated)
    raw = cloud(200)
    means, scales = raw.means.copy(), raw.scales.copy()
    means[:100], scales[:100] = (0.0, 0.0, 0.02), 1e6
    scene = build_scene(Gaussians(means, raw.quats, scales, raw.opacities, raw.sh))
    camera = Camera((1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0), (0.0, 0.0, 0.0), 1e7, 1e7, 48, 48, 96, 96)
    for antialiased in (False, True):
        (picture,) = drawn(scene, View(camera), antialiased=antialiased, with_depth=True)
        theirs = Rasterizer(1).render(scene, camera, antialiased=antialiased, with_depth=True)
        pairs = ((picture.rgb, theirs.rgb), (picture.alpha, theirs.alpha), (picture.depth, theirs.depth))
        assert all(np.allclose(*pair, atol=1e-4) for pair in pairs)


def test_a_launch_that_pairs_too_much_is_refused_before_its_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = build_scene(cloud(800))
    (alone,) = drawn(scene, MANY[0])
    monkeypatch.setattr(gsplat_rasterizer, "MAX_PAIRS", alone.pairs)
    drawn(scene, MANY[0])
    with pytest.raises(BadInput, match="at most"):
        drawn(scene, *MANY)


def test_pairs_are_those_that_gsplat_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    import gsplat

    made = []
    tiles = gsplat.isect_tiles

    def counted(*arguments: object) -> object:
        found = tiles(*arguments)
        made.append(found[0].sum(-1).tolist())
        return found

    monkeypatch.setattr(gsplat, "isect_tiles", counted)
    pictures = drawn(build_scene(cloud(800, log_scale=-1.0)), *MANY)
    assert made == [[each.pairs for each in pictures]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_device_is_freed_with_the_scene() -> None:
    before = torch.cuda.memory_allocated()
    placed = DeviceScene.of(build_scene(cloud(5000)), torch.device("cuda"))
    assert torch.cuda.memory_allocated() >= before + placed.memory_bytes
    del placed
    assert torch.cuda.memory_allocated() == before
