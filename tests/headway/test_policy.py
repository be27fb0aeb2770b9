from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.cost import Cost, Load, StepCurve
from headway.errors import BudgetTooSmall, Shed
from headway.planning import Job, Option, QueuePlan, Setting, plan_queue
from headway.policy import Policy, policy_of
from headway.quality import Ladder, Rung, Wish
from headway.v1 import common_pb2

RUNGS = (Rung("4", 1.0, nfe=4), Rung("2", 0.9, nfe=2), Rung("1", 0.6, nfe=1))
LADDERS = [Ladder(RUNGS)]
ALONE = Setting(now_s=0.0, curve=StepCurve(((1, Cost(100.0)),)), max_batch=1)
PAIRS = replace(ALONE, max_batch=2)
ALL = ("headway", "lowest", "fixed:4", "fixed:2", "threshold", "fifo", "fifo:1")


def job(key: int, due_s: float, rungs: tuple[Rung, ...] = RUNGS) -> Job:
    options = tuple(Option(rung, Load(due_s, 1, rung.nfe or 0)) for rung in rungs)
    return Job(key, common_pb2.PRIORITY_NORMAL, due_s, due_s, options)


def labels(plan: QueuePlan) -> list[str]:
    return [plan[key].option.rung.label for key in sorted(plan)]


def named(name: str) -> Policy:
    return policy_of(name, LADDERS)


@pytest.mark.parametrize(("name", "label"), [("headway", "4"), ("fixed:2", "2"), ("fixed:0", "4"), ("lowest", "1")])
def test_each_policy_has_its_rung_when_there_is_time(name: str, label: str) -> None:
    policy = named(name)
    assert policy.name == name
    assert labels(policy.plan([job(1, 10), job(2, 20)], ALONE)) == [label, label]


def test_headways_own_is_the_planner() -> None:
    jobs = [job(1, 0.7), job(2, 0.6)]
    assert named("headway").plan(jobs, ALONE) == plan_queue(jobs, ALONE)


@pytest.mark.parametrize(
    "name", ["", "best", "fixed", "fixed:", "fixed:3", "fixed:9", "fixed:-1", "fifo:7", "threshold:0", "threshold:x"]
)
def test_what_is_no_policy_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"no policy|no rung"):
        named(name)


def test_a_label_must_be_on_every_ladder_and_wins_over_a_place() -> None:
    other = Ladder((Rung("a", 1.0), Rung("1", 0.5), Rung("c", 0.1)))
    assert labels(policy_of("fixed:1", [LADDERS[0], other]).plan([job(1, 10)], ALONE)) == ["1"]
    with pytest.raises(ValueError, match="no rung '2'"):
        policy_of("fixed:2", [LADDERS[0], other])


@pytest.mark.parametrize("name", ["fixed:1", "lowest", "fifo:1", "fixed:4", "threshold"])
def test_a_callers_floor_and_exact_rung_bind_every_policy(name: str) -> None:
    policy = named(name)
    assert labels(policy.admit([], job(1, 10, RUNGS[1:2]), ALONE, reserve_ms=0)) == ["2"]
    floored = labels(named(name).admit([], job(2, 10, RUNGS[:2]), ALONE, reserve_ms=0))
    assert floored in (["4"], ["2"])


@pytest.mark.parametrize("name", ["headway", "greedy", "fixed:1", "lowest", "fifo:1", "threshold"])
def test_every_policy_knows_what_room_was_kept_for(name: str) -> None:
    policy, one = named(name), job(1, 10)
    (choice,) = policy.join([], one, ALONE, reserve_ms=0).values()
    assert choice.job.key == one.key
    assert list(policy.plan([one], ALONE)) == [1]


def test_a_fixed_rung_is_not_lowered_but_refused() -> None:
    policy = named("fixed:4")
    first = policy.admit([], job(1, 0.5), ALONE, reserve_ms=0)
    assert labels(first) == ["4"]
    with pytest.raises(Shed):
        policy.admit([job(1, 0.5)], job(2, 0.7), ALONE, reserve_ms=0)
    with pytest.raises(BudgetTooSmall):
        policy.admit([], job(3, 0.3), ALONE, reserve_ms=0)


def test_a_rung_stays_the_same_while_a_request_goes_through_it() -> None:
    """In flight the rungs that are done already are no options any more."""
    begun = job(1, 10, RUNGS[:2])
    assert labels(named("fixed:2").plan([begun], ALONE)) == ["2"]
    assert labels(named("fixed:1").plan([begun], ALONE)) == ["2"]


def test_the_threshold_lowers_new_requests_while_answers_are_late_and_raises_them_again() -> None:
    policy = named("threshold:4")
    admitted = [job(1, 10)]
    assert labels(policy.admit([], admitted[0], ALONE, reserve_ms=0)) == ["4"]
    for _ in range(4):
        policy.ended(0.95)
    admitted.append(job(2, 20))
    assert labels(policy.admit(admitted[:1], admitted[1], ALONE, reserve_ms=0)) == ["4", "2"]
    for _ in range(8):
        policy.ended(0.95)
    admitted.append(job(3, 30))
    assert labels(policy.admit(admitted[:2], admitted[2], ALONE, reserve_ms=0)) == ["4", "2", "1"]
    assert labels(policy.plan(admitted, ALONE)) == ["4", "2", "1"], "what has begun keeps its rung"
    for _ in range(4):
        policy.ended(0.2)
    admitted.append(job(4, 40))
    assert labels(policy.admit(admitted[:3], admitted[3], ALONE, reserve_ms=0)) == ["4", "2", "1", "2"]


def test_a_refusal_leaves_the_threshold_as_it_was() -> None:
    policy = named("threshold")
    policy.admit([], job(1, 0.45), ALONE, reserve_ms=0)
    with pytest.raises(Shed):
        policy.admit([job(1, 0.45)], job(2, 0.5), ALONE, reserve_ms=0)
    assert labels(policy.plan([job(1, 0.45)], ALONE)) == ["4"]


def test_fifo_goes_by_arrival_and_nobody_joins_in_flight() -> None:
    policy = named("fifo")
    jobs = [job(1, 30), job(2, 20), job(3, 10)]
    plan = policy.plan(jobs, PAIRS)
    assert list(plan) == [1, 2, 3]
    assert policy.ready(plan, PAIRS) == [1, 2]
    begun = [job(1, 30, RUNGS[:2]), job(2, 20, RUNGS[:2]), job(3, 10), job(4, 1)]
    assert policy.ready(policy.plan(begun, PAIRS), PAIRS) == [1, 2]
    assert policy.ready(policy.plan(begun[1:], PAIRS), PAIRS) == [2], "a place that falls free stays empty"
    assert policy.ready(policy.plan(begun[2:], PAIRS), PAIRS) == [3, 4]


def test_fifo_predicts_one_batch_after_another() -> None:
    policy = named("fifo")
    plan = policy.plan([job(1, 30), job(2, 20), job(3, 10)], PAIRS)
    assert [round(plan[key].finish.mean_ms) for key in (1, 2, 3)] == [400, 400, 800]


def test_fifo_refuses_what_comes_too_late_behind_the_others() -> None:
    policy = named("fifo")
    assert policy.admit([], job(1, 0.5), ALONE, reserve_ms=0)
    with pytest.raises(Shed) as refused:
        policy.admit([job(1, 0.5)], job(2, 0.7), ALONE, reserve_ms=0)
    assert (refused.value.retry_after_s or 0) > 0
    assert policy.admit([job(1, 0.5)], job(2, 0.9), ALONE, reserve_ms=0)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(ALL), st.lists(st.floats(0.05, 3.0), min_size=1, max_size=8))
def test_no_policy_admits_what_it_cannot_keep(name: str, dues_s: list[float]) -> None:
    """With certain costs, the plan after each yes keeps every deadline that was promised."""
    policy, admitted = named(name), list[Job]()
    for key, due_s in enumerate(dues_s):
        try:
            plan = policy.admit(admitted, job(key, due_s), PAIRS, reserve_ms=0)
        except (Shed, BudgetTooSmall):
            continue
        admitted.append(job(key, due_s))
        assert all(choice.finish.mean_ms <= choice.job.due_s * 1000 + 1e-6 for choice in plan.values())
        assert set(policy.ready(plan, PAIRS)) <= set(plan)


def test_a_plan_says_that_a_policy_chose_its_rung() -> None:
    wish = Wish(common_pb2.PRIORITY_NORMAL, RUNGS, exact=False, floored=False, target_s=None)
    policy = named("lowest")
    (choice,) = policy.plan([job(1, 10)], ALONE).values()
    assert policy.reason(choice, ALONE, wish) == common_pb2.RUNG_REASON_POLICY
    assert policy.reason(choice, ALONE, replace(wish, exact=True)) == common_pb2.RUNG_REASON_EXACT
