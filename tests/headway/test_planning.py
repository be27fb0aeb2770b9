import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.cost import Cost, Load, StepCurve
from headway.errors import BudgetTooSmall, Shed
from headway.jobs import DEMAND_BUCKETS, demand_of
from headway.planning import Job, Option, Setting, admit, hopeless, join, plan_queue, predict, reason_of
from headway.quality import Rung
from headway.v1 import common_pb2

LOW, NORMAL, HIGH = common_pb2.PRIORITY_LOW, common_pb2.PRIORITY_NORMAL, common_pb2.PRIORITY_HIGH
RUNGS = (Rung("4", 1.0, nfe=4), Rung("2", 0.9, nfe=2), Rung("1", 0.6, nfe=1))
ALONE = Setting(now_s=0.0, curve=StepCurve(((1, Cost(100.0)),)), max_batch=1)


def job(key: int, due_s: float, priority: int = NORMAL, target_s: float | None = None, rungs: int = 3) -> Job:
    options = tuple(Option(rung, Load(due_s, 1, rung.nfe or 0)) for rung in RUNGS[:rungs])
    return Job(key, priority, due_s, target_s or due_s, options)


def labels(jobs: list[Job], setting: Setting = ALONE) -> list[str]:
    plan = plan_queue(jobs, setting)
    return [plan[one.key].option.rung.label for one in jobs]


def test_everyone_gets_the_top_rung_when_there_is_time() -> None:
    assert labels([job(1, 10), job(2, 10)]) == ["4", "4"]


def test_a_short_deadline_lowers_its_own_request_no_further_than_it_takes() -> None:
    assert labels([job(1, 0.25)]) == ["2"]
    assert labels([job(1, 0.15)]) == ["1"]


def test_one_request_is_lowered_for_another() -> None:
    assert labels([job(1, 10), job(2, 0.45)]) == ["4", "4"]
    assert sorted(labels([job(1, 0.7), job(2, 0.6)])) == ["2", "4"]


def test_low_gives_way_before_normal_before_high() -> None:
    assert labels([job(1, 0.61, HIGH), job(2, 0.6, LOW)]) == ["4", "2"]
    assert labels([job(1, 0.61, HIGH), job(2, 0.6, NORMAL)]) == ["4", "2"]
    assert labels([job(1, 0.61, NORMAL), job(2, 0.6, LOW)]) == ["4", "2"]


def test_floors_are_kept() -> None:
    assert labels([job(1, 0.25, rungs=1)]) == ["4"]


def test_rungs_aim_at_the_target_where_it_can_be_met_and_at_the_deadline_where_not() -> None:
    assert labels([job(1, 10, target_s=0.25)]) == ["2"]
    assert labels([job(1, 0.45, target_s=0.05)]) == ["4"]


def test_who_misses_the_target_behind_others_is_over_as_soon_as_can_be() -> None:
    """Deadlines alone would let every one of them have the top rung, and those behind them wait for it."""
    queue = [job(key, 8.0, target_s=0.05) for key in range(1, 6)]
    assert labels(queue) == ["1"] * 5
    assert labels([*queue, job(6, 9.0, target_s=9.0)]) == [*["1"] * 5, "4"], "who is in time keeps its quality"
    assert labels(queue[:1], replace(ALONE, foreign=((9.0, 100.0),))) == ["1"], "others on the device wait too"


WAITING = replace(ALONE, failover_share=0.5)


def full_to(until_s: float, due_s: float) -> list[Job]:
    """Jobs of 100 ms at least that are due at `due_s`, enough to be over at `until_s`."""
    return [job(key, due_s) for key in range(10, 10 + round(until_s * 10))]


def test_who_has_seconds_to_wait_leaves_some_of_them_for_what_others_lose() -> None:
    assert admit(full_to(5.9, 12.0), job(1, 12.0), WAITING)
    late = full_to(6.0, 12.0)
    with pytest.raises(Shed, match="kept free for answers that others lose") as refused:
        admit(late, job(1, 12.0), WAITING)
    assert refused.value.retry_after_s == pytest.approx(0.1)
    assert admit(late, job(1, 12.0), ALONE), "what another worker lost is let in"
    assert admit(full_to(2.9, 3.0), job(1, 3.0), WAITING), "nobody can wait for a failover in so little time"
    assert admit([], job(1, 9.0), replace(WAITING, curve=StepCurve(((1, Cost(8500.0)),)))), "nor leave its own time"


def test_what_is_kept_free_is_not_filled_up_from_the_front() -> None:
    with pytest.raises(Shed):
        admit(full_to(6.5, 12.0), job(1, 8.0), WAITING)
    others = replace(WAITING, foreign=((12.0, 1300.0),) * 5)
    with pytest.raises(Shed, match="another worker on the device"):
        admit([], job(1, 8.0), others)
    assert admit([], job(1, 8.0), replace(others, failover_share=0.0))


def test_what_room_was_kept_for_is_taken_as_it_is() -> None:
    full = full_to(5.0, 5.0)
    with pytest.raises(Shed):
        admit(full, job(1, 5.0), ALONE)
    choice = join(full, job(1, 5.0), ALONE)[1]
    assert choice.option.rung.label == "1"
    assert choice.finish.mean_ms == pytest.approx(5100.0)


def test_what_an_idle_worker_cannot_do_is_too_small() -> None:
    with pytest.raises(BudgetTooSmall) as refused:
        admit([], job(1, 0.05), ALONE, reserve_ms=5)
    assert refused.value.least_budget_ms == pytest.approx(105)


def test_what_cannot_be_done_behind_the_queue_is_shed_with_the_time_to_come_back() -> None:
    queue = [job(key, 0.5 + key / 100) for key in range(1, 6)]
    with pytest.raises(Shed) as refused:
        admit(queue, job(9, 0.55), ALONE)
    assert refused.value.retry_after_s is not None
    assert 0 < refused.value.retry_after_s <= 0.5


def test_a_newcomer_may_not_break_a_promise() -> None:
    queue = [job(1, 0.11, rungs=3)]
    with pytest.raises(Shed, match="admitted requests late"):
        admit(queue, job(2, 0.105), ALONE)


def test_a_promise_that_is_lost_already_does_not_close_the_worker() -> None:
    lost = job(1, 0.01)
    assert admit([lost], job(2, 5.0), ALONE)[2].level == 0


def test_low_is_shed_before_high_is_lowered_and_normal_is_not() -> None:
    queue = [job(1, 0.45, HIGH)]
    with pytest.raises(Shed, match="high-priority"):
        admit(queue, job(2, 0.44, LOW), ALONE)
    plan = admit(queue, job(2, 0.44, NORMAL), ALONE)
    assert [plan[key].option.rung.label for key in (1, 2)] == ["2", "2"], "no lower than it takes"


def test_the_reason_tells_pressure_from_a_small_budget() -> None:
    tight, alone = job(1, 0.25), plan_queue([job(1, 0.25)], ALONE)[1]
    assert reason_of(tight, alone.level, ALONE, exact=False, floored=False) == common_pb2.RUNG_REASON_BEST_FIT
    loose = job(2, 0.65)
    behind = plan_queue([job(1, 0.6, HIGH), loose], ALONE)[2]
    assert behind.level > 0
    reason = reason_of(loose, behind.level, ALONE, exact=False, floored=False)
    assert reason == common_pb2.RUNG_REASON_QUEUE_PRESSURE
    assert reason_of(loose, 2, ALONE, exact=False, floored=True) == common_pb2.RUNG_REASON_FLOOR
    assert reason_of(loose, 0, ALONE, exact=True, floored=False) == common_pb2.RUNG_REASON_EXACT


def kept(jobs: list[Job], levels: tuple[int, ...]) -> bool:
    """Whether one job after another, by deadline, all are in time: an independent count, not the planner's."""
    spent_s = 0.0
    for one, level in sorted(zip(jobs, levels, strict=True), key=lambda pair: pair[0].due_s):
        spent_s += one.options[level].load.steps_left * 0.1
        if spent_s > one.due_s + 1e-9:
            return False
    return True


queues = st.lists(
    st.tuples(st.integers(1, 12), st.sampled_from([LOW, NORMAL, HIGH])),
    min_size=1,
    max_size=4,
    unique_by=lambda r: r[0],
)


@settings(deadline=None, max_examples=80)
@given(queues)
def test_if_any_plan_keeps_every_deadline_so_does_ours(rows: list[tuple[int, int]]) -> None:
    jobs = [job(key, due * 0.1, priority) for key, (due, priority) in enumerate(rows)]
    plan = plan_queue(jobs, ALONE)
    ours = tuple(plan[one.key].level for one in jobs)
    if any(kept(jobs, levels) for levels in itertools.product(range(3), repeat=len(jobs))):
        assert kept(jobs, ours)


@settings(deadline=None, max_examples=60)
@given(queues, st.integers(1, 12))
def test_admission_keeps_what_was_kept(rows: list[tuple[int, int]], due: int) -> None:
    admitted: list[Job] = []
    for key, (one_due, priority) in enumerate(rows):
        newcomer = job(key, one_due * 0.1 + 0.05, priority)
        try:
            plan = admit(admitted, newcomer, ALONE)
        except (Shed, BudgetTooSmall):
            continue
        admitted.append(newcomer)
        assert kept(admitted, tuple(plan[one.key].level for one in admitted))


def test_equals_are_lowered_together() -> None:
    """One of a batch at the bottom would save little, since the others' steps run on."""
    shared = Setting(now_s=0.0, curve=StepCurve(((1, Cost(100.0)), (8, Cost(110.0)))), max_batch=8)
    steps = {Rung(str(count), count / 4): count for count in (4, 2, 1)}  # each step is worth the same
    options = tuple(Option(rung, Load(0.3, 1, count)) for rung, count in steps.items())
    assert labels([Job(key, NORMAL, 0.3, 0.3, options) for key in range(8)], shared) == ["2"] * 8


def test_a_rung_is_judged_at_its_quantile_while_lowering_can_still_save_the_deadline() -> None:
    wide = Setting(now_s=0.0, curve=StepCurve(((1, Cost(100.0, 400.0)),)), max_batch=1)
    p90_s, p999_s = (Cost(400.0, 1600.0).quantile_ms(quantile) / 1000 for quantile in (0.9, 0.999))
    between = (p90_s + p999_s) / 2
    assert labels([job(1, between)], wide) == ["4"]
    wild = replace(wide, scale=Cost(1.0, 0.25))
    p90_s = Cost(400.0, 1600.0).scaled(wild.scale).quantile_ms(0.9) / 1000
    assert labels([job(1, p90_s)], wild) != ["4"], "too uncertain to be saved by lowering later"
    assert labels([job(1, 10, target_s=p90_s)], wild) == ["4"]


def test_a_slow_host_slows_every_step_together() -> None:
    slow = Setting(now_s=0.0, curve=StepCurve(((1, Cost(100.0)),)), max_batch=1, scale=Cost(1.5, 0.04))
    (finish,) = predict([Load(9.0, 1, 4)], slow)
    assert (finish.mean_ms, finish.var_ms2) == (pytest.approx(600), pytest.approx(400 * 400 * 0.04))
    (behind,) = predict([Load(9.0, 1, 4)], replace(slow, foreign=((1.0, 50.0),)))
    assert behind.mean_ms == pytest.approx(650), "foreign work is told in the time that it takes now"


def test_a_newcomer_may_not_break_another_workers_promise_on_the_device() -> None:
    shared = replace(ALONE, foreign=((0.5, 350.0),))
    assert 1 in admit([], job(1, 0.4), shared)
    with pytest.raises(Shed, match="another worker"):
        admit([job(1, 0.3)], job(2, 0.35), shared)
    lost = replace(ALONE, foreign=((0.05, 400.0),))
    assert 1 in admit([], job(1, 5.0), lost), "what was lost already does not close this worker"


def test_a_promise_in_danger_but_not_lost_is_not_pushed_further() -> None:
    wide = replace(ALONE, curve=StepCurve(((1, Cost(100.0, 900.0)),)))
    in_danger = job(1, 0.15, rungs=3)  # 100 ms of work, 193 ms at the admission quantile
    urgent = Job(2, NORMAL, 0.14, 0.14, (Option(RUNGS[0], Load(0.14, 1, 0, Cost(5.0))),))
    with pytest.raises(Shed, match="1 admitted requests late"):
        admit([in_danger], urgent, wide)
    assert admit([in_danger], job(2, 5.0), wide)[2].level == 0


def test_nothing_begins_before_the_step_that_runs_now_has_ended() -> None:
    behind = replace(ALONE, busy_ms=100.0)
    assert admit([], job(1, 0.19), ALONE)
    with pytest.raises(Shed) as refused:
        admit([], job(1, 0.19), behind)
    assert refused.value.retry_after_s == pytest.approx(0.1)
    assert admit([], job(1, 0.21), behind)[1].finish.mean_ms == pytest.approx(200.0)


def test_time_for_a_stall_is_kept_free_at_admission_and_costs_no_quality() -> None:
    stalling = replace(ALONE, stall_ms=50.0)
    assert admit([job(1, 5.0)], job(2, 0.12), ALONE)
    with pytest.raises(Shed):
        admit([job(1, 5.0)], job(2, 0.12), stalling)
    assert labels([job(1, 0.42)], stalling) == ["4"]


def test_rungs_are_not_raised_at_the_cost_of_work_of_others_that_is_due_later() -> None:
    """Two jobs with time to spare, and 300 ms of another worker's that are due 50 ms after they would be done."""
    queue = [job(1, 0.6), job(2, 0.8)]
    assert labels(queue) == ["4", "4"]
    shared = replace(ALONE, foreign=((0.85, 300.0),))
    plan = plan_queue(queue, shared)
    own_ms = sum(choice.option.load.steps_left * 100 for choice in plan.values())
    assert own_ms + 300 <= 850
    assert own_ms > 200, "no lower than it takes"
    assert labels(queue, replace(ALONE, foreign=((0.85, 1200.0),))) == ["4", "4"], "what is lost is not waited for"


def test_foreign_work_in_danger_is_not_pushed_further() -> None:
    shared = replace(ALONE, foreign=((0.5, 450.0),))
    in_danger = [job(1, 0.4, rungs=3)]  # 100 ms of it at least, so that the foreign work is 50 ms late already
    urgent = Job(2, NORMAL, 0.45, 0.45, (Option(RUNGS[0], Load(0.45, 1, 0, Cost(5.0))),))
    with pytest.raises(Shed, match="another worker"):
        admit(in_danger, urgent, shared)
    assert admit(in_danger, job(2, 5.0), shared)


def test_others_are_told_what_admission_counts_on_and_by_when() -> None:
    """And nothing of what runs now, and of what others have told themselves."""
    setting = replace(
        ALONE, curve=StepCurve(((1, Cost(100.0, 100.0)),)), busy_ms=30.0, foreign=((0.5, 70.0),), overhead_ms=10.0
    )
    rows = demand_of([job(2, 3.0, rungs=1), job(1, 1.0, rungs=1)], setting)
    assert [due_s for due_s, _ in rows] == [pytest.approx(0.99), pytest.approx(2.99)]
    assert rows[0][1] == pytest.approx(Cost(400.0, 400.0).quantile_ms(0.999))
    assert sum(ms for _, ms in rows) == pytest.approx(Cost(800.0, 800.0).quantile_ms(0.999))
    later = demand_of([job(1, 1.0, rungs=1)], replace(ALONE, later=((0.7, 30.0),)))
    assert later == [(0.7, 30.0), (1.0, pytest.approx(400.0))], "and of what room is kept for"
    slow = demand_of([job(1, 1.0, rungs=1)], replace(ALONE, scale=Cost(1.5)))
    assert slow == [(1.0, pytest.approx(600.0))], "on the host as it is now"


def test_a_worker_that_has_raised_its_rungs_keeps_no_newcomer_of_another_one_out() -> None:
    here, there = job(1, 0.45), job(2, 0.3)
    assert labels([here]) == ["4"]
    told = demand_of([here], ALONE)
    assert told == [(0.45, pytest.approx(100.0))], "the least that can be done"
    admitted = admit([], there, replace(ALONE, foreign=told))
    assert admitted[there.key].level == 1
    assert labels([here], replace(ALONE, foreign=demand_of([there], ALONE))) == ["2"], "it gives way"


def test_what_would_be_late_by_the_last_chance_alone_is_told_as_in_time() -> None:
    """At the admission quantile it is late, at the rungs' own it is not: others must not take it for lost."""
    wide = replace(ALONE, curve=StepCurve(((1, Cost(100.0, 400.0)),)))
    p90_s, p999_s = (Cost(400.0, 1600.0).quantile_ms(quantile) / 1000 for quantile in (0.9, 0.999))
    between_s = (p90_s + p999_s) / 2
    assert demand_of([job(1, between_s, rungs=1)], wide) == [(between_s, pytest.approx(between_s * 1000))]


def test_foreign_work_that_is_a_little_late_is_waited_for() -> None:
    tight = replace(ALONE, foreign=((0.5, 501.0),))  # it was told a moment ago
    assert labels([job(1, 0.45)], tight) == ["1"], "all that it can give"
    with pytest.raises(Shed, match="another worker"):
        admit([], job(1, 0.45), tight)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.1, 9.0), min_size=1, max_size=40, unique=True))
def test_no_more_is_told_than_fits_and_never_less_work_by_any_time(dues_s: list[float]) -> None:
    rows = demand_of([job(key, due_s, rungs=1) for key, due_s in enumerate(dues_s)], ALONE)
    assert len(rows) <= DEMAND_BUCKETS
    assert rows == sorted(rows)
    for place, due_s in enumerate(sorted(dues_s), start=1):
        assert sum(ms for told_s, ms in rows if told_s <= due_s) >= place * 400.0 - 1e-6
    assert sum(ms for _, ms in rows) == pytest.approx(len(dues_s) * 400.0)


def test_hopeless_is_who_would_be_late_even_alone() -> None:
    commits = replace(ALONE, commits=True)
    behind = [job(key, 0.25) for key in (1, 2, 3)]
    assert hopeless(plan_queue(behind, commits), commits) == [], "the third is late behind the others alone"
    plan = plan_queue([*behind, job(4, 0.09)], commits)
    assert hopeless(plan, commits) == [4]
    assert hopeless(plan, ALONE) == [], "a text may end after the token that it has"
    doubtful = replace(commits, curve=StepCurve(((1, Cost(100.0, 100.0)),)))
    assert hopeless(plan_queue([*behind, job(4, 0.09)], doubtful), doubtful) == [], "it may yet be quicker than that"
    assert hopeless(plan_queue([job(4, 0.09)], commits), commits) == [], "nobody waits for its time"
    shared = replace(commits, foreign=((9.0, 1.0),))
    assert hopeless(plan_queue([job(4, 0.09)], shared), shared) == [4], "but for others on the device"
