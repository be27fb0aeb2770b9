import itertools
import random

import pytest

from benchmarks.experiment.arrivals import DEADLINE_FACTORS, Mix, arrivals, bursty, spike, steady, times

MIX = Mix((16, 32, 64), (("high", 0.2), ("normal", 0.8)), target_share=0.5)


def test_poisson_arrivals_have_the_rate_that_was_asked_for():
    at_s = times(steady(0.5, 1000.0), 20.0, random.Random(0))
    assert len(at_s) == pytest.approx(10_000, rel=0.03)
    assert at_s == sorted(at_s) and at_s[0] > 0 and at_s[-1] < 1000
    gaps = [b - a for a, b in itertools.pairwise(at_s)]
    mean = sum(gaps) / len(gaps)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean * mean, rel=0.1)


def test_a_spike_is_five_times_the_calm_before_and_after():
    at_s = times(spike(300.0), 50.0, random.Random(0))
    thirds = [sum(1 for time_s in at_s if 100 * third <= time_s < 100 * (third + 1)) for third in range(3)]
    assert thirds[0] == pytest.approx(1500, rel=0.08)
    assert thirds[1] == pytest.approx(7500, rel=0.05)
    assert thirds[2] == pytest.approx(1500, rel=0.08)


def test_bursts_keep_the_mean_load_and_are_burstier_than_poisson():
    draw = random.Random(0)
    profile = bursty(0.9, 4000.0, draw)
    assert sum(length_s for length_s, _ in profile) == pytest.approx(4000.0)
    assert sum(length_s * load for length_s, load in profile) / 4000 == pytest.approx(0.9, rel=0.05)
    at_s = times(profile, 10.0, draw)
    seconds = [0] * 4000
    for time_s in at_s:
        seconds[int(time_s)] += 1
    mean = sum(seconds) / len(seconds)
    assert sum((count - mean) ** 2 for count in seconds) / len(seconds) > 2 * mean


def test_requests_ask_for_what_the_mix_says():
    found = arrivals([0.1 * number for number in range(3000)], MIX, lambda items: 2.0 * items, random.Random(0))
    assert [arrival.index for arrival in found] == list(range(3000))
    for size in MIX.sizes:
        assert sum(1 for arrival in found if arrival.items == size) == pytest.approx(1000, rel=0.1)
    factors = [round(arrival.deadline_ms / (2 * arrival.items), 3) for arrival in found]
    for factor in DEADLINE_FACTORS:
        assert factors.count(factor) == pytest.approx(1000, rel=0.1)
    assert all(arrival.target_ms == arrival.deadline_ms / 2 for arrival in found)
    assert sum(1 for arrival in found if arrival.priority == "high") == pytest.approx(600, rel=0.15)


def test_the_same_seed_sends_the_same():
    first, second = (
        arrivals(times(steady(1.0, 10.0), 9.0, draw), MIX, float, draw) for draw in (random.Random(3), random.Random(3))
    )
    assert first == second


def test_no_load_sends_nothing():
    assert times(steady(0.0, 10.0), 5.0, random.Random(0)) == []
