import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.experiment.bound import Window, bound
from benchmarks.experiment.exhaustive import best_quality, fits, gaps

LADDER = ((1.0, 4.0), (0.8, 2.0), (0.5, 1.0))

windows = st.builds(
    lambda start, length, options: Window(start, start + length, options),
    st.floats(0, 5),
    st.floats(0.5, 8),
    st.sampled_from([LADDER, LADDER[1:], ((0.9, 3.0), (0.3, 0.5))]),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(windows, min_size=1, max_size=5))
def test_no_schedule_is_better_than_the_bound(found):
    assert bound(found) >= best_quality(found) - 1e-6


@settings(max_examples=40, deadline=None)
@given(st.lists(windows, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_work_that_fits_obeys_every_interval_and_the_other_way_round(found, draw):
    work_s = [draw.choice([cost for _, cost in window.options]) for window in found]
    starts, ends = {window.release_s for window in found}, {window.due_s for window in found}
    obeyed = all(_inside(found, work_s, a, b) <= b - a + 1e-9 for a in starts for b in ends if a < b)
    assert fits(found, work_s) == obeyed


def _inside(found, work_s, a, b):
    return sum(work for window, work in zip(found, work_s, strict=True) if a <= window.release_s and window.due_s <= b)


def test_with_room_for_all_the_bound_is_reached():
    found = [Window(10.0 * index, 10.0 * index + 5, LADDER) for index in range(4)]
    assert bound(found) == pytest.approx(4.0)
    assert best_quality(found) == 4.0


def test_one_window_for_many_is_shared_out_by_quality_for_time():
    # Five seconds for three: lowered to the last rung each is worth 0.5 a second, which nothing beats.
    found = [Window(0.0, 5.0, LADDER)] * 3
    assert best_quality(found) == pytest.approx(2.1)  # 0.8 + 0.8 + 0.5
    assert bound(found) == pytest.approx(2.1)


def test_nothing_asked_is_worth_nothing():
    assert bound([]) == 0.0
    assert bound([Window(0.0, 0.0, LADDER)]) == pytest.approx(0.0)


def test_the_bound_is_near_what_can_be_reached():
    found = gaps(8, 5, LADDER)
    assert all(gap >= -1e-6 for gap in found)
    assert sum(found) / len(found) < 0.15


def test_more_time_is_never_worth_less():
    draw = random.Random(4)
    tight = [Window(at, at + draw.uniform(1, 4), LADDER) for at in range(6)]
    loose = [Window(window.release_s, window.due_s + 1, window.options) for window in tight]
    assert bound(loose) >= bound(tight) - 1e-9
