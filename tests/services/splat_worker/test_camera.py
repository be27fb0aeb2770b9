"""Cameras: what they see, and that impossible ones are refused by field."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.errors import BadInput
from services.splat_worker.camera import MAX_SIDE_PX, Camera, from_matrices, look_at

K = [100.0, 0, 32, 0, 110, 24, 0, 0, 1]
EYE = np.eye(4).ravel().tolist()


def project(camera: Camera, point: tuple[float, float, float]) -> tuple[float, float, float]:
    """Pixel and depth of a world point, from the matrices."""
    x, y, z = (camera.viewmat @ np.array([*point, 1.0]))[:3]
    u, v, w = camera.k @ np.array([x, y, z])
    return u / w, v / w, z


def test_look_at_puts_the_target_in_the_middle_and_up_at_the_top() -> None:
    camera = look_at((3, 2, 5), (0, 1, 0), (0, 1, 0), 60, 200, 100)
    u, v, depth = project(camera, (0, 1, 0))
    assert (u, v) == pytest.approx((100, 50))
    assert depth == pytest.approx(math.dist((3, 2, 5), (0, 1, 0)))
    assert project(camera, (0, 1.5, 0))[1] < 50  # higher in the world is higher on the frame


def test_field_of_view_is_vertical() -> None:
    camera = look_at((0, 0, -1), (0, 0, 0), (0, -1, 0), 90, 300, 100)
    assert project(camera, (0, 1, 0))[1] == pytest.approx(100)  # 45 degrees below the axis: the lower edge


def test_matrices_are_kept() -> None:
    camera = from_matrices(EYE, K, 64, 48)
    np.testing.assert_allclose(camera.viewmat.ravel(), EYE)
    np.testing.assert_allclose(camera.k.ravel(), K)


@given(scale=st.floats(0.01, 1.0), width=st.integers(1, 600), height=st.integers(1, 600))
@settings(max_examples=50, deadline=None)
def test_a_scaled_camera_sees_the_same(scale: float, width: int, height: int) -> None:
    camera = look_at((1, 2, 3), (0, 0, 0), (0, 1, 0), 50, width, height)
    small = camera.scaled(scale)
    u, v, _ = project(camera, (0.3, 0.2, 0.1))
    x, y, _ = project(small, (0.3, 0.2, 0.1))
    assert (x / small.width, y / small.height) == pytest.approx((u / width, v / height))
    assert 1 <= small.width <= width and 1 <= small.height <= height


@given(scale=st.floats(0.1, 1.0), left=st.integers(0, 50), top=st.integers(0, 40))
@settings(max_examples=30, deadline=None)
def test_a_crop_sees_what_the_frame_has_there_and_keeps_its_limits(scale: float, left: int, top: int) -> None:
    whole = look_at((1, 2, 3), (0, 0, 0), (0, 1, 0), 50, 90, 70)
    crop = whole.cropped(left, top, 40, 30)
    u, v, _ = project(whole, (0.3, 0.2, 0.1))
    assert project(crop, (0.3, 0.2, 0.1))[:2] == pytest.approx((u - left, v - top))
    for other in (crop, crop.scaled(scale), crop.cropped(3, 4, 5, 6)):
        assert other.limits == pytest.approx(whole.limits)


@pytest.mark.parametrize("crop", [(-1, 0, 5, 5), (0, 0, 0, 5), (0, 66, 5, 5), (86, 0, 5, 5), (0, 0, 91, 70)])
def test_a_crop_that_leaves_the_frame_is_refused(crop: tuple[int, int, int, int]) -> None:
    with pytest.raises(BadInput, match=r"options\.crop"):
        look_at((1, 2, 3), (0, 0, 0), (0, 1, 0), 50, 90, 70).cropped(*crop)


def changed(values: list[float], index: int, value: float) -> list[float]:
    return [*values[:index], value, *values[index + 1 :]]


@pytest.mark.parametrize(
    ("field", "viewmat", "k", "width", "height"),
    [
        ("options.width", EYE, K, 0, 48),
        ("options.width", EYE, K, MAX_SIDE_PX + 1, 48),
        ("options.height", EYE, K, 64, 0),
        ("options.width", EYE, K, 4096, 4096),
        ("camera.matrices.viewmat", EYE[:15], K, 64, 48),
        ("camera.matrices.viewmat", changed(EYE, 3, math.nan), K, 64, 48),
        ("camera.matrices.viewmat", changed(EYE, 3, math.inf), K, 64, 48),
        ("camera.matrices.viewmat", changed(EYE, 3, 1e30), K, 64, 48),
        ("camera.matrices.viewmat", changed(EYE, 0, 2.0), K, 64, 48),
        ("camera.matrices.viewmat", [0.0] * 15 + [1.0], K, 64, 48),
        ("camera.matrices.viewmat", changed(EYE, 0, -1.0), K, 64, 48),
        ("camera.matrices.viewmat", changed(EYE, 12, 1.0), K, 64, 48),
        ("camera.matrices.k", EYE, K[:8], 64, 48),
        ("camera.matrices.k", EYE, changed(K, 0, -100), 64, 48),
        ("camera.matrices.k", EYE, changed(K, 4, 0), 64, 48),
        ("camera.matrices.k", EYE, changed(K, 1, 5), 64, 48),
        ("camera.matrices.k", EYE, changed(K, 2, math.nan), 64, 48),
    ],
)
def test_impossible_matrices_are_refused(
    field: str, viewmat: list[float], k: list[float], width: int, height: int
) -> None:
    with pytest.raises(BadInput) as refused:
        from_matrices(viewmat, k, width, height)
    assert list(refused.value.violations) == [field]


@pytest.mark.parametrize(
    ("field", "position", "target", "up", "fov"),
    [
        ("camera.look_at.target", (0, 0, 1), (0, 0, 1), (0, 1, 0), 50),
        ("camera.look_at.up", (0, 0, 1), (0, 0, 0), (0, 0, 0), 50),
        ("camera.look_at.up", (0, 0, 1), (0, 0, 0), (0, 0, -3e6), 50),
        ("camera.look_at.position", (math.nan, 0, 1), (0, 0, 0), (0, 1, 0), 50),
        ("camera.look_at.target", (0, 0, 1), (math.inf, 0, 0), (0, 1, 0), 50),
        ("camera.look_at.field_of_view_deg", (0, 0, 1), (0, 0, 0), (0, 1, 0), 0),
        ("camera.look_at.field_of_view_deg", (0, 0, 1), (0, 0, 0), (0, 1, 0), 180),
        ("camera.look_at.field_of_view_deg", (0, 0, 1), (0, 0, 0), (0, 1, 0), math.nan),
    ],
)
def test_impossible_poses_are_refused(
    field: str,
    position: tuple[float, float, float],
    target: tuple[float, float, float],
    up: tuple[float, float, float],
    fov: float,
) -> None:
    with pytest.raises(BadInput) as refused:
        look_at(position, target, up, fov, 64, 48)
    assert list(refused.value.violations) == [field]
