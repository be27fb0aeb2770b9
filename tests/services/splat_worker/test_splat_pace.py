"""What a path needs of a worker: admission, the rung it keeps, what is kept free; and what comes next in progress."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.cost import ZERO, Cost, Load, StepCurve
from headway.errors import BudgetTooSmall, Shed
from headway.planning import Job, Option, Setting
from headway.quality import Rung
from services.splat_worker.pace import Ahead, Pace, check_path, later_demand
from services.splat_worker.path import Timetable
from services.splat_worker.progressive import next_rung

SETTING = Setting(100.0, StepCurve(((1, ZERO),)), 1, overhead_ms=1.0)
JOB = Job(
    1, 2, 110.0, 110.0,
    tuple(Option(Rung(label, quality), Load(110.0, 1, 0, Cost(ms)))
          for label, quality, ms in (("top", 1.0, 100.0), ("half", 0.5, 40.0), ("least", 0.2, 10.0))),
)  # fmt: skip
OPEN = Timetable(100.0, 110.0, 110.0, 50, None, 1.0)
PACED = replace(OPEN, frames_per_second=20.0)


@given(begun=st.integers(0, 50), timetable=st.sampled_from([OPEN, PACED]))
def test_what_is_kept_free_is_all_that_is_left(begun: int, timetable: Timetable) -> None:
    kept = later_demand(timetable, begun, 10.0)
    assert len(kept) <= 4
    assert sum(ms for _, ms in kept) == pytest.approx(10.0 * (50 - begun))
    assert [due_s for due_s, _ in kept] == sorted(due_s for due_s, _ in kept)


def test_what_paths_keep_free_is_scaled_and_ends_with_them() -> None:
    ahead = Ahead()
    ahead.keep(1, [(5.0, 10.0)])
    ahead.keep(2, [(6.0, 20.0)])
    ahead.keep(1, [(5.0, 8.0)])
    assert sorted(ahead.scaled(2.0)) == [(5.0, 16.0), (6.0, 40.0)]
    ahead.keep(1, ())
    ahead.keep(2, ())
    ahead.keep(2, ())
    assert ahead.scaled(2.0) == ()


def test_without_a_rate_all_frames_are_promised_or_the_path_is_refused() -> None:
    check_path(JOB, OPEN, SETTING, (), reserve_ms=5.0)
    with pytest.raises(BudgetTooSmall) as refused:
        check_path(JOB, replace(OPEN, count=1001), SETTING, (), reserve_ms=5.0)
    assert refused.value.least_budget_ms == pytest.approx(1001 * 10 + 1 + 5)
    with pytest.raises(BudgetTooSmall):
        check_path(JOB, OPEN, replace(SETTING, scale=Cost(21.0)), (), reserve_ms=5.0)


def test_a_path_that_fits_alone_but_not_beside_others_is_shed_and_told_when() -> None:
    busy = [(105.0, 4000.0), (110.0, 5600.0)]
    check_path(JOB, OPEN, SETTING, busy[:1], reserve_ms=0.0)
    with pytest.raises(Shed) as refused:
        check_path(JOB, OPEN, SETTING, busy, reserve_ms=0.0)
    assert refused.value.retry_after_s == pytest.approx(0.1)


def test_a_path_leaves_room_for_what_other_workers_lose() -> None:
    keeping = replace(SETTING, failover_share=0.5)
    busy = [(110.0, 4600.0)]
    with pytest.raises(Shed) as refused:
        check_path(JOB, OPEN, keeping, busy, reserve_ms=0.0)
    assert refused.value.retry_after_s == pytest.approx(0.1)
    check_path(JOB, OPEN, keeping, [(110.0, 4400.0)], reserve_ms=0.0)
    check_path(JOB, OPEN, keeping, [(104.0, 4000.0)], reserve_ms=0.0)


def test_a_rate_above_what_the_worker_can_do_costs_the_path_frames_and_is_no_refusal() -> None:
    check_path(JOB, replace(PACED, frames_per_second=200.0), SETTING, (), reserve_ms=0.0)


def test_a_rate_that_another_path_already_needs_is_shed() -> None:
    slower = Job(1, 2, 110.0, 110.0, (replace(JOB.options[0], load=Load(110.0, 1, 0, Cost(40.0))),))
    other = later_demand(PACED, 0, 40.0)
    with pytest.raises(Shed):
        check_path(slower, PACED, SETTING, other, reserve_ms=0.0)


@pytest.mark.parametrize(
    ("timetable", "others_ms", "label"),
    [(OPEN, 0.0, "top"), (OPEN, 6000.0, "half"), (PACED, 0.0, "half"), (PACED, 5000.0, "least")],
)
def test_the_pace_is_the_best_rung_that_all_frames_can_keep(timetable: Timetable, others_ms: float, label: str) -> None:
    pace = Pace.of(JOB, timetable, SETTING, others_ms)
    option = JOB.options[pace.level]
    assert option.rung.label == label
    assert pace.finish.mean_ms == pytest.approx(50 * option.load.setup.mean_ms + others_ms)


COSTS = [Cost(100.0), Cost(40.0), Cost(15.0)]


@pytest.mark.parametrize(
    ("last_ms", "room_ms", "index"),
    [
        (40.0, 500.0, 0),  # near: the best at once
        (5.0, 500.0, 2),  # far: one on the way
        (15.0, 500.0, 1),
        (15.0, 120.0, 0),  # no room for both: the best
        (5.0, 60.0, 2),
        (5.0, 45.0, 1),
        (5.0, 10.0, None),
    ],
)
def test_progress_is_by_steps_that_leave_room_for_the_best(last_ms: float, room_ms: float, index: int | None) -> None:
    assert next_rung(COSTS, Cost(last_ms), room_ms, 0.9) == index


@given(last_ms=st.floats(1, 200), room_ms=st.floats(0, 400))
def test_what_comes_next_always_fits(last_ms: float, room_ms: float) -> None:
    index = next_rung(COSTS, Cost(last_ms), room_ms, 0.9)
    assert index is None or COSTS[index].mean_ms <= room_ms
