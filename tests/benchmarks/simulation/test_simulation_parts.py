"""The clock, hosts, arrivals and counts of the simulator."""

import random
from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulation.clock import Clock
from benchmarks.simulation.device import SharedDevice
from benchmarks.simulation.host import Host, Noise
from benchmarks.simulation.models import default_models, mean_least_ms
from benchmarks.simulation.stream import Demand, Shares, requests, steady_demand
from benchmarks.simulation.tally import jain
from headway.device import Demand as Declared


def test_events_happen_in_order_and_those_of_one_time_in_the_order_they_were_made() -> None:
    clock, seen = Clock(), list[tuple[float, str]]()

    def note(name: str) -> None:
        seen.append((clock(), name))

    clock.at(2.0, note, "late")
    clock.at(1.0, note, "first")
    clock.at(1.0, note, "second")
    clock.at(1.5, clock.at, 0.0, note, "not before now")
    clock.follow(iter([(1.0, "arrival"), (3.0, "last")]), note)
    assert seen == [
        (1.0, "first"), (1.0, "second"), (1.0, "arrival"), (1.5, "not before now"), (2.0, "late"), (3.0, "last")
    ]  # fmt: skip


def test_a_host_is_slow_for_its_share_of_the_time_and_steps_spread_as_told() -> None:
    host = Host(Noise(spread=0.2, slow_share=0.25, slow_factor=3.0, slow_s=1.0), random.Random(1))
    slow = [host.slowness(at / 50) for at in range(200_000)]
    assert sum(each == 3.0 for each in slow) / len(slow) == pytest.approx(0.25, abs=0.03)
    calm = Host(Noise(spread=0.2), random.Random(1))
    steps = [calm.step_ms(10.0, 0.0) for _ in range(20_000)]
    mean = sum(steps) / len(steps)
    assert mean == pytest.approx(10.0, rel=0.01)
    assert (sum((step - mean) ** 2 for step in steps) / len(steps)) ** 0.5 == pytest.approx(2.0, rel=0.05)


def test_a_shared_device_goes_to_the_most_urgent_and_a_kept_lease_ends_with_the_next_question() -> None:
    device, begun = SharedDevice("d", Clock(), 0.0), list[str]()
    device.lease("a", 9.0, lambda: begun.append("a"))
    device.lease("b", 5.0, lambda: begun.append("b"))
    device.lease("c", 3.0, lambda: begun.append("c"))
    assert begun == ["a"]
    device.lease("a", 4.0, lambda: begun.append("a again"))
    assert begun == ["a", "c"]
    device.rest("c")
    device.rest("a again")  # nobody of this name holds it
    assert begun == ["a", "c", "a again"]


def test_others_on_a_shared_device_know_of_each_other_a_moment_later() -> None:
    clock = Clock()
    device, seen = SharedDevice("d", clock, tell_s=0.5), list[object]()

    def look() -> None:
        seen.append((device.others("b"), device.busy_until_s("b"), device.busy_until_s("a")))

    device.lease("a", 9.0, lambda: device.declare("a", [(9.0, 3.0)], 2.0))
    clock.at(0.4, look)
    clock.at(0.6, look)
    clock.at(0.7, device.rest, "a")
    clock.at(0.8, look)
    clock.follow(iter(()), look)
    told = (Declared(9.0, 3.0),)
    assert seen == [((), None, None), (told, 2.0, None), (told, None, None)]


def test_requests_come_in_order_at_the_rate_that_was_asked_and_the_same_for_everyone() -> None:
    models = default_models()
    rates = {model: 1000 / mean_least_ms(model) for model in models}
    first, again = (list(islice(requests(steady_demand(0.5), rates, 3), 3000)) for _ in range(2))
    assert [(one.key, one.at_s, one.items, one.tenant) for one in first] == [
        (one.key, one.at_s, one.items, one.tenant) for one in again
    ]
    assert all(a.at_s <= b.at_s for a, b in pairwise(first))
    assert len(first) / first[-1].at_s == pytest.approx(0.5 * sum(rates.values()), rel=0.1)
    assert {one.model for one in first} == set(models)
    assert all(one.deadline_s > one.at_s for one in first)


def test_a_profile_is_followed_and_its_last_stretch_goes_on() -> None:
    model = default_models()[1]
    demand = Demand(((3.0, 0.0), (2.0, 2.0), (1.0, 1.0)))
    found = [request.at_s for request in islice(requests(demand, {model: 100.0}, 1), 1500)]
    assert found[0] >= 3.0
    assert sum(at_s < 5.0 for at_s in found) == pytest.approx(400, rel=0.2)
    assert sum(5.0 <= at_s < 10.0 for at_s in found) == pytest.approx(500, rel=0.2)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=5), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_shares_give_every_place_a_name(shares: list[float], place: float) -> None:
    names = Shares([(str(index), share) for index, share in enumerate(shares)])
    assert names.at(place) in {str(index) for index in range(len(shares))}
    assert names.at(0.0) == "0"


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_fairness_is_one_for_equals_and_least_where_one_has_everything(values: list[float]) -> None:
    assert 1 / len(values) - 1e-9 <= jain(values) <= 1 + 1e-9
    assert jain([values[0]] * len(values)) == pytest.approx(1.0)
    assert jain([1.0, *[0.0] * 4]) == pytest.approx(0.2)


def test_what_load_one_means_is_less_work_than_any_request_alone() -> None:
    for model in default_models():
        lowest = len(model.ladder.rungs) - 1
        for items in model.sizes:
            assert 0 < model.least_ms(items, lowest) < model.least_ms(items, 0) <= model.solo_ms(items) + 1e-9
            assert model.quality(items, 0) == 1.0 > model.quality(items, lowest) > 0
