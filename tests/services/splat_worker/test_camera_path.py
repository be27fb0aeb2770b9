"""Cameras between keys, and when the frames of a path are wanted."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.splat_worker.camera import Camera, look_at
from services.splat_worker.path import Path, Timetable

coordinates = st.floats(-10, 10)
points = st.tuples(coordinates, coordinates, coordinates)


@st.composite
def cameras(draw: st.DrawFn) -> Camera:
    position, target, up = draw(points), draw(points), (0.1, 1.0, 0.2)
    forward = np.array(target) - position
    if np.linalg.norm(np.cross(forward, up)) < 1e-3:
        target = (position[0] + 1.0, position[1], position[2])
    return look_at(position, target, up, draw(st.floats(20, 100)), 64, 48)


def place(camera: Camera) -> np.ndarray:
    return -np.reshape(camera.rotation, (3, 3)).T @ camera.translation


@settings(max_examples=40, deadline=None)
@given(keys=st.lists(cameras(), min_size=1, max_size=5), between=st.integers(0, 4))
def test_keys_are_met_and_every_camera_between_is_a_camera(keys: list[Camera], between: int) -> None:
    path = Path(tuple(keys), between)
    assert path.count == (len(keys) - 1) * (between + 1) + 1
    assert [path.camera(index) for index in range(0, path.count, between + 1)] == keys
    for index in range(path.count):
        rotation = np.reshape(path.camera(index).rotation, (3, 3))
        assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(rotation) == pytest.approx(1)


def orbit(angle_deg: float, focal: float = 100.0) -> Camera:
    angle = math.radians(angle_deg)
    camera = look_at((3 * math.sin(angle), 0, 3 * math.cos(angle)), (0, 0, 0), (0, 1, 0), 50, 64, 64)
    return replace(camera, fx=focal, fy=focal)


def test_half_way_between_two_keys_turns_half_and_zooms_by_equal_factors() -> None:
    path = Path((orbit(0, 100), orbit(80, 400)), 1)
    middle, expected = path.camera(1), orbit(40)
    assert np.allclose(middle.rotation, expected.rotation, atol=1e-9)
    assert middle.fx == pytest.approx(200)
    assert np.allclose(place(middle), (place(path.keys[0]) + place(path.keys[1])) / 2)


def test_a_turn_goes_the_shorter_way() -> None:
    path = Path((orbit(170), orbit(190)), 1)
    assert np.allclose(path.camera(1).rotation, orbit(180).rotation, atol=1e-9)


def test_a_straight_even_walk_stays_straight_and_even() -> None:
    keys = tuple(look_at((x, 0, 5), (x, 0, 0), (0, 1, 0), 50, 64, 64) for x in (0, 1, 2, 3))
    path = Path(keys, 3)
    walked = [place(path.camera(index)) for index in range(path.count)]
    assert np.allclose(walked, [(index / 4, 0, 5) for index in range(path.count)])


def test_a_spline_has_no_jump_in_speed_at_a_key() -> None:
    path = Path(tuple(orbit(angle) for angle in (0, 50, 70, 160)), 199)
    walked = np.array([place(path.camera(index)) for index in range(path.count)])
    speeds = np.diff(walked, axis=0)
    for key in (200, 400):
        assert np.linalg.norm(speeds[key] - speeds[key - 1]) < 0.02 * np.linalg.norm(speeds[key])


def test_an_orbit_through_six_keys_stays_near_its_circle() -> None:
    path = Path(tuple(orbit(60 * index) for index in range(7)), 9)
    radii = [np.linalg.norm(place(path.camera(index))) for index in range(10, path.count - 10)]
    assert max(abs(radius - 3) for radius in radii) < 0.03 * 3


TABLE = Timetable(
    arrival_s=100, target_s=108, due_s=110, count=100, frames_per_second=20.0, start_delay_s=1.0
)  # fmt: skip


def test_a_rate_paces_targets_from_the_call_and_dues_from_the_delay() -> None:
    assert TABLE.frame_target_s(0) == pytest.approx(100.05)
    assert TABLE.frame_target_s(99) == pytest.approx(105)
    assert TABLE.frame_due_s(0) == pytest.approx(101)
    assert TABLE.frame_due_s(99) == pytest.approx(105.95)
    assert replace(TABLE, due_s=103).frame_due_s(99) == 103
    assert replace(TABLE, start_delay_s=0.01).frame_target_s(0) == pytest.approx(100.01)


def test_without_a_rate_the_frames_share_the_time_to_the_target() -> None:
    table = replace(TABLE, frames_per_second=None)
    assert [table.frame_target_s(index) for index in (0, 49, 99)] == pytest.approx([100.08, 104, 108])
    assert {table.frame_due_s(index) for index in range(100)} == {110}
