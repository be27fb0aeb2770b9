"""What a ms of the device is worth to those who are expected: prices, what they leave, and who is refused."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.cost import Cost, Load, StepCurve
from headway.demand import Demand, Price, offer_of
from headway.errors import Shed
from headway.jobs import Job, Option, Setting
from headway.policy import Greedy, Planned
from headway.quality import Rung

SETTING = Setting(now_s=100.0, curve=StepCurve(((1, Cost(100.0)),)), max_batch=1, commits=True)
QUALITIES = ((4, 1.0), (2, 0.9), (1, 0.6))
LOW, NORMAL, HIGH = 1, 2, 3
DEADLINE_S = 2.0


def job(key: int, now_s: float, *, items: int = 1, priority: int = NORMAL, deadline_s: float = DEADLINE_S) -> Job:
    due_s = now_s + deadline_s
    options = tuple(Option(Rung(str(n), quality), Load(due_s, items, n)) for n, quality in QUALITIES)
    return Job(key, priority, due_s, due_s, options)


def arriving(per_s: float, *, seconds: float = 20.0, **fields: int) -> tuple[Demand, Setting]:
    """What is expected after so many requests a second; a step of one item takes 0.1 s."""
    demand, setting = Demand(), SETTING
    for number in range(round(per_s * seconds)):
        setting = replace(SETTING, now_s=SETTING.now_s + number / per_s)
        demand.arrived(job(number, setting.now_s, **fields), setting)
    return demand, setting


def kept(demand: Demand, setting: Setting, *jobs: Job) -> list[str]:
    return [each.options[0].rung.label for each in demand.affordable(jobs, setting)]


@pytest.mark.parametrize(("per_s", "best"), [(1.0, "4"), (2.0, "4"), (4.5, "2"), (11.0, "1"), (30.0, "1")])
def test_the_more_is_expected_the_fewer_steps_are_left_for_each(per_s: float, best: str) -> None:
    """A backlog of half a horizon is as it should be: then the device's 10 steps a second are for those who come."""
    demand, setting = arriving(per_s)
    setting = replace(setting, busy_ms=900.0)
    assert kept(demand, setting, job(-1, setting.now_s)) == [best]


def test_nothing_is_expected_of_the_first_few_and_after_long_silence() -> None:
    few, setting = arriving(30.0, seconds=0.2)
    assert kept(few, setting, job(-1, setting.now_s)) == ["4"]
    many, setting = arriving(30.0)
    assert kept(many, setting, job(-1, setting.now_s)) == ["1"]
    later = replace(setting, now_s=setting.now_s + 60)
    assert kept(many, later, job(-1, later.now_s)) == ["4"]


def test_a_slower_host_and_a_longer_backlog_leave_less() -> None:
    demand, setting = arriving(4.0)
    busy = replace(setting, busy_ms=900.0)
    assert kept(demand, busy, job(-1, setting.now_s)) == ["2"]
    assert kept(demand, replace(busy, scale=Cost(3.0)), job(-1, setting.now_s)) == ["1"]
    assert kept(demand, replace(busy, busy_ms=1800.0), job(-1, setting.now_s)) == ["1"]
    later = replace(busy, busy_ms=0.0, foreign=((setting.now_s + 2, 1800.0),))
    assert kept(demand, later, job(-1, setting.now_s)) == ["1"]
    patient = replace(busy, foreign=((setting.now_s + 800, 1800.0),))
    assert kept(demand, patient, job(-1, setting.now_s)) == ["2"], "what is due in ten minutes does not press"


def test_a_worker_that_shares_its_device_has_no_prices() -> None:
    """It does not know what is asked of the others. For a moment without others, nothing changes."""
    demand, setting = arriving(12.0)
    busy = replace(setting, busy_ms=900.0)
    many = job(-1, setting.now_s, items=8)
    assert kept(demand, busy, job(-1, setting.now_s)) == ["1"]
    assert not demand.worth_keeping([], many, busy)
    assert kept(demand, replace(busy, shared=True), job(-1, setting.now_s)) == ["4"]
    assert kept(demand, busy, job(-1, setting.now_s)) == ["4"]
    assert demand.worth_keeping([], many, busy)
    alone = replace(busy, now_s=setting.now_s + DEADLINE_S)
    assert kept(demand, alone, job(-1, alone.now_s)) == ["1"]


def test_who_asks_for_much_gives_way_for_those_who_ask_for_little() -> None:
    demand, setting = arriving(12.0)
    busy = replace(setting, busy_ms=900.0)
    assert demand.worth_keeping([], job(-1, setting.now_s), replace(setting, busy_ms=600.0))
    assert not demand.worth_keeping([], job(-1, setting.now_s, items=8), busy)
    patient = job(-2, setting.now_s, items=8, deadline_s=60.0)
    assert demand.worth_keeping([], patient, busy), "there is time for it later"


def test_each_priority_has_its_price() -> None:
    """Many normal ones lower normal and low ones, and do not touch high ones; many high ones lower all."""
    demand, setting = arriving(4.5)
    busy = replace(setting, busy_ms=700.0)
    high, normal, low = (job(-1, setting.now_s, priority=priority) for priority in (HIGH, NORMAL, LOW))
    assert kept(demand, busy, high, normal, low) == ["4", "2", "1"]
    demand, setting = arriving(4.5, priority=HIGH)
    busy = replace(setting, busy_ms=700.0)
    assert kept(demand, busy, high, normal, low) == ["2", "1", "1"]
    assert demand.worth_keeping([], low, busy), "nobody is refused for a higher rung of those who may come"
    assert kept(demand, replace(busy, commits=False), high, normal, low) == ["4", "4", "4"]


def test_of_equals_so_many_have_more_as_there_is_time_for() -> None:
    """Six a second leave 0.3 of the device: half of them have a second step."""
    demand, setting = arriving(6.0)
    busy = replace(setting, busy_ms=900.0 + 100)
    labels = [kept(demand, busy, job(key, setting.now_s))[0] for key in range(100)]
    assert labels.count("2") + labels.count("1") == 100
    assert 0.4 <= labels.count("2") / 100 <= 0.6


QUALITY = st.floats(0, 1).map(lambda value: round(value, 3))


@given(st.lists(QUALITY, min_size=1, max_size=5), st.floats(0, 1))
def test_an_offers_level_is_the_best_at_its_price(qualities: list[float], price: float) -> None:
    """Against every level: none has more quality less what its time costs."""
    falling = sorted(qualities, reverse=True)
    steps = [2 ** (len(falling) - level - 1) for level in range(len(falling))]
    rungs = [Rung(str(level), quality) for level, quality in enumerate(falling)]
    options = [Option(rung, Load(101.0, 1, count)) for rung, count in zip(rungs, steps, strict=True)]
    setting = replace(SETTING, curve=StepCurve(((1, Cost(1.0)),)))
    offer = offer_of(Job(1, NORMAL, 101.0, 101.0, tuple(options)), setting)
    gains = [quality - price * count for quality, count in zip(falling, steps, strict=True)]
    assert gains[offer.level(Price(price, 0.0), 0.0, len(falling) - 1)] == pytest.approx(max(gains), abs=1e-6)
    worths = [worth for worth, _, _ in offer.more]
    assert worths == sorted(worths, reverse=True)


def test_the_planner_leaves_time_for_those_who_come_and_tells_whole_ladders() -> None:
    own, greedy = Planned(), Greedy()
    setting = SETTING
    for number in range(100):
        setting = replace(SETTING, now_s=SETTING.now_s + number / 4)
        own.check([], job(number, setting.now_s), setting, reserve_ms=0)
    busy, new = replace(setting, busy_ms=900.0), job(-1, setting.now_s)
    plan = own.admit([], new, busy, reserve_ms=0)
    assert (plan[-1].job, plan[-1].option.rung.label) == (new, "2")
    assert own.plan([new], busy)[-1].option.rung.label == "2"
    assert greedy.admit([], new, busy, reserve_ms=0)[-1].option.rung.label == "4"


def test_under_overload_the_planner_refuses_what_would_fit_but_costs_others_more() -> None:
    own, setting = Planned(), SETTING
    for number in range(200):
        setting = replace(SETTING, now_s=SETTING.now_s + number / 20)
        own.check([], job(number, setting.now_s), setting, reserve_ms=0)
    large, busy = job(-1, setting.now_s, items=8), replace(setting, busy_ms=900.0)
    with pytest.raises(Shed, match="expected") as refused:
        own.check([], large, busy, reserve_ms=0)
    assert refused.value.retry_after_s > 0
    Greedy().check([], large, busy, reserve_ms=0)
