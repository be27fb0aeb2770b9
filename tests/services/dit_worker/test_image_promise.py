"""The promise itself, on a virtual clock: with costs known exactly, nobody who is admitted is late, at any load."""

import pytest
from virtual_worker import VirtualWorker, poisson

from headway.policy import Greedy, Planned


@pytest.mark.parametrize("max_batch", [16, 64])
@pytest.mark.parametrize("load", [0.6, 1.2, 1.5])
def test_with_exact_costs_nobody_who_was_admitted_is_late(load: float, max_batch: int) -> None:
    worker = VirtualWorker(max_batch)
    worker.serve(poisson(load, 700, seed=3))
    assert worker.refused or load < 1  # with more somebody has to give way
    assert len(worker.slack_ms) > 200
    assert min(worker.slack_ms) > -1e-6


@pytest.mark.parametrize(("load", "gain"), [(0.3, 0.99), (0.6, 1.02), (0.9, 1.03), (1.2, 1.07), (1.5, 1.15)])
def test_leaving_time_for_those_who_come_brings_more_quality(load: float, gain: float) -> None:
    """And more answers: what is refused for it is less than what would have been refused without."""
    planned, greedy = VirtualWorker(64, Planned()), VirtualWorker(64, Greedy())
    for worker in (planned, greedy):
        worker.serve(poisson(load, 1500, seed=5))
    assert planned.quality > gain * greedy.quality
    assert len(planned.slack_ms) >= 0.99 * len(greedy.slack_ms)
    assert min(planned.slack_ms) > -1e-6
