"""Prompts that begin alike, on virtual time: they go where they are cached, and both caches are used."""

import pytest

from benchmarks.simulation.documents import Mesh, documents


def test_the_same_seed_gives_the_same() -> None:
    one, again, other = (documents(Mesh(), at_once=4, count=40, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one != other


@pytest.mark.parametrize(("slower", "rest_s"), [(0.0, 0.0), (0.1, 0.0), (0.1, 0.2)])
def test_one_after_the_other_finds_the_prompts_of_both_caches(slower: float, rest_s: float) -> None:
    """No worker can keep all documents, two can; the quicker one alone would lose as many as round robin does."""
    found, by_turns = (
        documents(Mesh(placement, slower=slower), at_once=1, rest_s=rest_s, count=160)
        for placement in ("headway", "round-robin")
    )
    assert by_turns.reused_share < 0.6
    assert found.reused_share > 0.8  # of 160 prompts 16 are seen first
    assert min(found.shares) > 0.3
    assert found.mean_s < by_turns.mean_s


@pytest.mark.parametrize("seed", [1, 2])
def test_many_at_once_go_where_they_are_cached_and_no_worker_idles(seed: int) -> None:
    found, by_turns = (
        documents(Mesh(placement), at_once=32, count=240, seed=seed) for placement in ("headway", "round-robin")
    )
    assert found.reused_share > by_turns.reused_share + 0.15
    assert found.answers_per_s > 1.2 * by_turns.answers_per_s
    assert min(found.shares) > 0.3
