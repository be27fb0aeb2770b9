"""Plans of short queues against exhaustive search over every plan there is, judged by the planner's own model."""

import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.planning import RUNGS, WORKERS, best_worth, gap_figures, planned_levels, plans, worth
from headway.cost import Cost, Load, StepCurve
from headway.errors import BudgetTooSmall, Shed
from headway.planning import Job, Option, Setting, admit, plan_queue
from headway.queue_model import QueueModel

SERIAL = Setting(0.0, StepCurve(((1, Cost(100.0)),)), 1)
BATCHED = Setting(0.0, StepCurve(((1, Cost(100.0)), (3, Cost(160.0)))), 3)
KINDS = st.sampled_from([SERIAL, BATCHED, replace(SERIAL, foreign=((0.4, 150.0),))])
MOST_GAP = 0.25


def make_job(key: int, due_ds: int, priority: int, first: int, last: int) -> Job:
    """Due after so many tenths of a second; may take the rungs from `first` to `last`."""
    due_s = due_ds / 10 + 0.001
    options = tuple(Option(rung, Load(due_s, 1, rung.nfe or 1)) for rung in RUNGS[first : last + 1])
    return Job(key, priority, due_s, due_s, options)


rows = st.tuples(st.integers(1, 14), st.integers(1, 3), st.integers(0, 1), st.integers(1, 2))
queues = st.lists(rows, min_size=1, max_size=5).map(lambda drawn: [make_job(k, *row) for k, row in enumerate(drawn)])


@settings(deadline=None, max_examples=60)
@given(queues, KINDS)
def test_no_deadline_is_broken_that_some_plan_keeps(jobs: list[Job], setting: Setting) -> None:
    model = QueueModel(jobs, setting)
    levels = planned_levels(model)
    if next(plans(model), None) is not None:
        assert max(model.lateness_ms(levels, model.by_due)) <= 1e-9


@settings(deadline=None, max_examples=60)
@given(queues, KINDS)
def test_floors_and_exact_rungs_are_kept_whatever_comes(jobs: list[Job], setting: Setting) -> None:
    plan = plan_queue(jobs, setting)
    assert set(plan) == {job.key for job in jobs}
    assert all(choice.option in choice.job.options for choice in plan.values())
    assert list(plan) == sorted(plan, key=lambda key: plan[key].job.due_s)


@settings(deadline=None, max_examples=60)
@given(queues)
def test_low_gives_way_before_high(jobs: list[Job]) -> None:
    """Where a plan is kept, nobody of a higher priority could be raised with the lower ones at the bottom for it."""
    model = QueueModel(jobs, SERIAL)
    levels = planned_levels(model)
    if max(model.lateness_ms(levels, model.by_due)) > 1e-9:
        return
    for place, job in enumerate(model.order):
        if levels[place] == 0:
            continue
        instead = [
            model.bottom[other] if model.order[other].priority < job.priority else level
            for other, level in enumerate(levels)
        ]
        instead[place] -= 1
        assert max(model.lateness_ms(instead, model.by_due)) > 1e-9


@settings(deadline=None, max_examples=60)
@given(queues, KINDS)
def test_admission_breaks_no_promise(jobs: list[Job], setting: Setting) -> None:
    """After every yes some plan keeps every deadline, and the plan that comes with it does."""
    admitted: list[Job] = []
    for job in jobs:
        try:
            plan = admit(admitted, job, setting)
        except (Shed, BudgetTooSmall):
            continue
        admitted.append(job)
        assert all(choice.finish.mean_ms <= choice.job.due_s * 1000 + 1e-6 for choice in plan.values())
        assert next(plans(QueueModel(admitted, setting)), None) is not None


@settings(deadline=None, max_examples=60)
@given(queues, st.floats(1.05, 4.0))
def test_a_quicker_worker_can_do_no_worse(jobs: list[Job], quicker: float) -> None:
    """The best plan there is never gets worse; ours stays within its gap of it."""
    model = QueueModel(jobs, SERIAL)
    best = best_worth(model)
    if best is None:
        return
    swift = QueueModel(jobs, replace(SERIAL, scale=Cost(1 / quicker)))
    levels = planned_levels(swift)
    assert max(swift.lateness_ms(levels, swift.by_due)) <= 1e-9
    assert sum(worth(swift, levels)) >= sum(best) * (1 - MOST_GAP) - 1e-9


@pytest.mark.parametrize("worker", list(WORKERS))
@pytest.mark.parametrize("priorities", ["2", "123"])
def test_the_gap_to_the_best_plan_is_small(worker: str, priorities: str) -> None:
    """Seeded, so always the same queues: see docs/decisions/0020-planner.md for the figures of many more."""
    found = gap_figures(worker, 40, priorities)
    assert found["not_kept_by_ours"] == 0
    assert found["quality_gap_mean"] <= 0.01
    assert found["a_better_plan_exists"] <= 0.1 * found["queues_that_can_be_kept"]
    assert found["quality_gap_most"] <= MOST_GAP


def test_what_nothing_can_save_lowers_nobody() -> None:
    """Due before any rung could be done: those behind it keep what they have, and it is not waited for."""
    lost, others = make_job(1, 0, 3, 0, 2), [make_job(key, 30, 1, 0, 2) for key in (2, 3, 4)]
    plan = plan_queue([lost, *others], SERIAL)
    assert [plan[key].level for key in (1, 2, 3, 4)] == [2, 0, 0, 0]


def test_what_is_in_danger_is_waited_for_by_all_before_it() -> None:
    """Its mean is in time and its quantile is not: everything due earlier gives what it can."""
    wild = replace(SERIAL, scale=Cost(1.0, 0.01))
    before, in_danger = make_job(1, 4, 1, 0, 2), make_job(2, 6, 3, 0, 0)
    assert plan_queue([before], wild)[1].option.rung.label == "2"
    assert plan_queue([before, in_danger], wild)[1].option.rung.label == "1"


def test_a_longer_queue_is_kept_as_well() -> None:
    """Too long to search through: every promise that the bottom keeps is kept, with quality left over."""
    setting = WORKERS["images, 16 to 64 a request"][0]
    bottom_ms = [setting.curve.at(128).mean_ms * (1 + place / 4) for place in range(200)]
    jobs = []
    for key, ms in enumerate(bottom_ms):
        due_s = ms * 1.6 / 1000
        jobs.append(Job(key, 2, due_s, due_s, tuple(Option(r, Load(due_s, 32, r.nfe or 1)) for r in RUNGS)))
    plan = plan_queue(jobs, setting)
    assert all(choice.finish.mean_ms <= choice.job.due_s * 1000 for choice in plan.values())
    assert statistics.mean(choice.option.rung.quality for choice in plan.values()) > RUNGS[2].quality + 0.1
