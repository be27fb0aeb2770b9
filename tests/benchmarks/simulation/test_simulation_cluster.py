"""Whole runs of a simulated cluster: what comes in comes out, the same every time, and promises are kept."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.simulation.cluster import Cluster, simulate
from benchmarks.simulation.host import EXACT, Noise
from benchmarks.simulation.models import default_models
from benchmarks.simulation.router import Request
from benchmarks.simulation.stream import steady_demand
from headway.errors import HeadwayError
from headway.quality import Rung

NOISY = Noise(spread=0.1, slow_share=0.2, slow_s=0.3, stall_chance=0.01)


def cluster(noise: Noise = EXACT, **fields: Any) -> Cluster:
    return Cluster(dict.fromkeys(default_models(noise.spread), 2), noise=noise, **fields)


def without_times(figures: dict[str, Any]) -> dict[str, Any]:
    """What a run found, without what the run itself took."""
    return {name: value for name, value in figures.items() if name not in ("cpu_s", "placing_us")}


@pytest.mark.parametrize("shared", [False, True])
def test_the_same_seed_gives_the_same_and_another_does_not(shared: bool) -> None:
    of = cluster(NOISY, shared=shared, routers=2)
    one, again, other = (simulate(of, steady_demand(1.2), 80, seed=seed).as_dict() for seed in (1, 1, 2))
    assert without_times(one) == without_times(again)
    assert without_times(one) != without_times(other)


@pytest.mark.parametrize(
    "made",
    [
        cluster(NOISY),
        cluster(NOISY, shared=True),
        cluster(NOISY, placement="least-queue", policy="fixed:0", interval_s=0.5, routers=3),
        cluster(NOISY, placement="prefix-hash", policy="fifo", interval_s=0.0),
    ],
)
def test_every_request_ends_once_and_nothing_is_lost(made: Cluster) -> None:
    ends, admitted = Counter[int](), 0

    def told(request: Request, what: Rung | HeadwayError, was_admitted: bool) -> None:
        nonlocal admitted
        ends[request.key] += 1
        admitted += was_admitted
        assert was_admitted or isinstance(what, HeadwayError)  # nobody is answered without a promise

    outcome = simulate(made, steady_demand(1.5), 120, told=told)
    assert ends == dict.fromkeys(range(1, 121), 1)
    counts = outcome.tally.all
    assert counts.asked == 120
    assert counts.admitted == admitted == counts.asked - sum(counts.refused.values())
    assert 0 < counts.in_time <= counts.answered <= counts.admitted
    for group in outcome.tally.by.values():
        assert sum(part.asked for part in group.values()) == 120
        assert sum(part.goodput for part in group.values()) == pytest.approx(counts.goodput)


@pytest.mark.parametrize("load", [0.6, 1.5])
def test_with_exact_costs_and_fresh_reports_nobody_who_was_admitted_is_late(load: float) -> None:
    counts = simulate(cluster(interval_s=0.0), steady_demand(load), 250).tally.all
    assert sum(counts.refused.values()) > 0  # it was a load that somebody has to give way to
    assert counts.admitted > 120
    assert counts.in_time == counts.admitted


def test_headway_keeps_at_least_as_much_as_round_robin_when_there_is_too_much() -> None:
    uneven = cluster(Noise(spread=0.1), slower=(1.0, 2.0))
    found = {
        name: simulate(replace(uneven, placement=name), steady_demand(1.2), 240, seed=5).tally.all
        for name in ("headway", "round-robin")
    }
    ours, theirs = found["headway"], found["round-robin"]
    assert ours.in_time / ours.admitted >= theirs.in_time / theirs.admitted
    assert ours.goodput > theirs.goodput


def test_goodput_stays_below_the_bound() -> None:
    outcome = simulate(cluster(), steady_demand(0.9), 120, bounded=True)
    assert outcome.bound is not None
    assert 0.5 * outcome.bound < outcome.tally.all.goodput <= outcome.bound * (1 + 1e-9)


@pytest.mark.parametrize(
    ("load", "policy", "least"),
    [(0.3, "greedy", 0.8), (0.6, "headway", 0.45), (1.2, "greedy", 0.3), (1.2, "headway", 0.27)],
)
def test_kinds_that_share_a_device_keep_what_they_promise(load: float, policy: str, least: float) -> None:
    """Steps take up to 40 ms, and what each has admitted and runs the others know half a millisecond later.

    `least`: of goodput; it takes that none keeps newcomers elsewhere out by what it does better than it must.
    """
    images, frames, texts = default_models(0.05)
    models = (images, frames, replace(texts, stride=1))
    shared = Cluster(dict.fromkeys(models, 2), noise=Noise(0.05), shared=True, policy=policy)
    counts = simulate(shared, steady_demand(load), 700, seed=2).tally.all
    assert counts.admitted > 100
    assert counts.admitted - counts.in_time <= max(1, counts.admitted // 500)
    assert counts.goodput / counts.asked >= least
