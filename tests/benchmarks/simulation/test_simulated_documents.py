"""Prompts that begin alike, on virtual time: they go where they are cached, whatever the load."""

import pytest

from benchmarks.simulation.documents import Mesh, documents

SEEDS = (1, 2)


def test_the_same_seed_gives_the_same() -> None:
    mesh = Mesh("headway")
    assert documents(mesh, at_once=4, count=60) == documents(mesh, at_once=4, count=60)
    assert documents(mesh, at_once=4, count=60) != documents(mesh, at_once=4, count=60, seed=2)


@pytest.mark.parametrize("seed", SEEDS)
def test_many_at_once_go_where_they_are_cached_and_no_worker_idles(seed: int) -> None:
    found = documents(Mesh("headway"), at_once=32, count=320, seed=seed)
    by_turns = documents(Mesh("round-robin"), at_once=32, count=320, seed=seed)
    assert found.reused_share > by_turns.reused_share + 0.15
    assert found.answers_per_s > 1.2 * by_turns.answers_per_s
    assert min(found.shares) > 0.35
