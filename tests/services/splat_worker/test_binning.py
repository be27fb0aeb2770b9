"""Tiles of a splat, however far it lies outside the frame: a wrong one would be written beyond the lists."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rasterizer_parity import cloud

from services.splat_worker.camera import from_matrices
from services.splat_worker.rasterizer import Rasterizer
from services.splat_worker.rasterizer.binning import _tile_span
from services.splat_worker.rasterizer.project import DISC, REACH, RECORD, X0, X1, Y0, Y1, A, B, C, X, Y
from services.splat_worker.scene import build_scene

SIDE_PX, TILE_PX = 128, 16
LOG2_E = math.log2(math.e)


def record(x: float, y: float, turn: float, long_px: float, wide_px: float, opacity: float) -> np.ndarray | None:
    """A splat's record as projection writes it; None when its box misses the frame."""
    cosine, sine = math.cos(turn), math.sin(turn)
    xx = (cosine * long_px) ** 2 + (sine * wide_px) ** 2 + 0.3
    yy = (sine * long_px) ** 2 + (cosine * wide_px) ** 2 + 0.3
    xy = cosine * sine * (long_px**2 - wide_px**2)
    reach = 2 * math.log(opacity * 255)
    sigmas = math.sqrt(min(reach, 3.33**2))
    x0, x1 = max(math.ceil(x - sigmas * math.sqrt(xx)), 0), min(math.floor(x + sigmas * math.sqrt(xx)), SIDE_PX - 1)
    y0, y1 = max(math.ceil(y - sigmas * math.sqrt(yy)), 0), min(math.floor(y + sigmas * math.sqrt(yy)), SIDE_PX - 1)
    if x0 > x1 or y0 > y1:
        return None
    scale = LOG2_E / ((long_px**2 + 0.3) * (wide_px**2 + 0.3))
    made = np.zeros(RECORD, dtype=np.float32)
    made[[X, Y, X0, X1, Y0, Y1]] = x, y, x0, x1, y0, y1
    made[[A, B, C]] = -0.5 * yy * scale, xy * scale, -0.5 * xx * scale
    made[[REACH, DISC]] = -0.5 * reach * LOG2_E, -scale * LOG2_E
    return made


@settings(max_examples=300, deadline=None)
@given(
    x=st.floats(-1e6, 1e6), y=st.floats(-1e6, 1e6), turn=st.floats(0, math.pi), long_px=st.floats(0, 1e6),
    wide_px=st.floats(0, 1e3), opacity=st.floats(0.005, 1),
)  # fmt: skip
def test_tiles_lie_within_the_box_or_there_are_none(
    x: float, y: float, turn: float, long_px: float, wide_px: float, opacity: float
) -> None:
    made = record(x, y, turn, long_px, wide_px, opacity)
    if made is None:
        return
    for row in range(int(made[Y0]) // TILE_PX, int(made[Y1]) // TILE_PX + 1):
        first, last = _tile_span(made, row)
        none = (first, last) == (1, 0)
        assert none or int(made[X0]) // TILE_PX <= first <= last <= int(made[X1]) // TILE_PX


def test_a_view_through_the_longest_lens_is_drawn() -> None:
    view = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 5, 0, 0, 0, 1]
    scene = build_scene(cloud(20_000, log_scale=-4.0, degree=0))
    for focal_px in (1e4, 1e5, 1e6, 1e7):
        camera = from_matrices(view, [focal_px, 0, 64, 0, focal_px, 64, 0, 0, 1], SIDE_PX, SIDE_PX)
        picture = Rasterizer(1).render(scene, camera)
        assert np.isfinite(picture.rgb).all()
        assert picture.alpha.max() > 0
