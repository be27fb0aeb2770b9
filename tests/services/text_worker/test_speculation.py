"""What is guessed, how guesses are judged, and which are worth their rows."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.text_worker.speculation import MOST_INDEXED, NGRAMS, Acceptance, Candidate, Lookup, least_chance, worth


def test_what_followed_the_same_tokens_last_is_drafted() -> None:
    tokens = [1, 2, 3, 4, 5, 6, 9, 9, 1, 2, 7, 8, 1, 2]
    assert Lookup().drafts(tokens, 3) == (7, 8, 1)
    assert Lookup().drafts([*tokens, 3, 4], 2) == (5, 6)
    assert Lookup().drafts([1, 2, 3], 5) == ()
    assert Lookup().drafts([1, 2, 1, 2], 0) == ()


def test_longer_runs_are_believed_before_shorter_ones() -> None:
    assert Lookup().drafts([1, 2, 3, 4, 50, 3, 4, 60, 1, 2, 3, 4], 1) == (50,)


def test_a_text_that_goes_round_is_drafted_round() -> None:
    assert Lookup().drafts([7, 1, 2, 3, 1, 2, 3], 7) == (1, 2, 3, 1, 2, 3, 1)
    assert Lookup().drafts([5, 5, 5], 4) == (5, 5, 5, 5)


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(1, 9), max_size=10), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_a_lookup_that_grew_drafts_as_a_new_one(tokens: list[int], strides: list[int], most: int) -> None:
    grown, end = Lookup(), 0
    for stride in strides:
        end = min(len(tokens), end + stride)
        assert grown.drafts(tokens[:end], most) == Lookup().drafts(tokens[:end], most)


@given(st.lists(st.integers(0, 2), min_size=2, max_size=40))
@settings(max_examples=60, deadline=None)
def test_drafts_are_there_exactly_where_a_run_came_before(tokens: list[int]) -> None:
    least = min(NGRAMS)
    runs = [tokens[i : i + least] for i in range(len(tokens) - least)]
    assert bool(Lookup().drafts(tokens, 1)) == (tokens[-least:] in runs)


def test_memory_is_bounded_and_the_newest_is_remembered() -> None:
    lookup = Lookup()
    tokens = list(range(MOST_INDEXED))
    lookup.drafts(tokens, 1)
    tokens += range(MOST_INDEXED, MOST_INDEXED + 10)
    assert lookup.drafts([*tokens, 5, 6], 1) == ()  # forgotten
    tokens += [5, 6, MOST_INDEXED - 2, MOST_INDEXED - 1]
    assert lookup.drafts(tokens, 1) == (MOST_INDEXED,)


def test_chances_follow_what_was_right_and_fade_to_doubt() -> None:
    good, bad = Acceptance(), Acceptance()
    assert good.chance == 0.5
    for _ in range(20):
        good.observe(7, 7)
        bad.observe(7, 0)
    assert good.chance > 0.95
    assert bad.chance < 0.1
    for _ in range(200):
        bad.observe(0, 0)
    assert bad.chance == pytest.approx(0.5, abs=0.05)


def test_a_wrong_draft_says_nothing_of_those_behind_it() -> None:
    short, long = Acceptance(), Acceptance()
    short.observe(3, 2)
    long.observe(7, 2)
    assert short.chance == long.chance


def linear(first_ms: float, row_ms: float) -> list[float]:
    return [first_ms + row_ms * rows for rows in range(64)]


def test_drafts_are_taken_while_a_row_costs_less_than_it_brings() -> None:
    def counts(row_ms: float, chance: float) -> list[int]:
        ms = linear(4.0, row_ms).__getitem__
        return worth([Candidate(7, chance, 1e9)], 1, ms, ms, at_any_cost=False)

    assert counts(0.1, 0.9) == [7]
    assert counts(1.0, 0.9) == [6]
    assert counts(1.0, 0.2) == [0]
    assert counts(4.0, 0.99) == [0]  # as dear as a step


CANDIDATES = st.lists(st.tuples(st.integers(1, 3), st.floats(0.05, 0.99), st.floats(0, 6)), min_size=1, max_size=3)


@given(CANDIDATES, st.integers(0, 3), st.floats(0.1, 5), st.floats(0, 3))
@settings(max_examples=100, deadline=None)
def test_no_other_drafts_bring_more_tokens_a_millisecond(
    rows: list[tuple[int, float, float]], others: int, first_ms: float, row_ms: float
) -> None:
    ms, decodes = linear(first_ms, row_ms).__getitem__, len(rows) + others
    candidates = [Candidate(count, chance, 1e9) for count, chance, _ in rows]

    def rate(counts: tuple[int, ...]) -> float:
        gained = sum(c.chance**d for c, count in zip(candidates, counts, strict=True) for d in range(1, count + 1))
        return (decodes + gained) / ms(sum(counts))

    found = worth(candidates, decodes, ms, ms, at_any_cost=False)
    best = max(rate(counts) for counts in product(*(range(c.most + 1) for c in candidates)))
    assert rate(tuple(found)) == pytest.approx(best)


@given(CANDIDATES, st.booleans())
@settings(max_examples=60, deadline=None)
def test_drafts_never_outlast_the_patience_of_those_that_take_any(
    rows: list[tuple[int, float, float]], at_any_cost: bool
) -> None:
    ms = linear(2.0, 1.0).__getitem__
    candidates = [Candidate(count, chance, patience_ms) for count, chance, patience_ms in rows]
    counts = worth(candidates, len(rows), ms, ms, at_any_cost=at_any_cost)
    taken = [candidate for candidate, count in zip(candidates, counts, strict=True) if count]
    assert sum(counts) <= min((candidate.patience_ms for candidate in taken), default=0)
    assert all(count <= candidate.most for candidate, count in zip(candidates, counts, strict=True))


@given(CANDIDATES, st.integers(0, 3), st.floats(0.1, 5), st.floats(0, 3))
@settings(max_examples=100, deadline=None)
def test_where_no_chance_is_large_enough_nothing_is_wanted(
    rows: list[tuple[int, float, float]], others: int, first_ms: float, row_ms: float
) -> None:
    ms, decodes = linear(first_ms, row_ms).__getitem__, len(rows) + others
    least = least_chance(decodes, ms)
    candidates = [Candidate(count, min(chance, least), 1e9) for count, chance, _ in rows]
    if least >= 0:
        assert not any(worth(candidates, decodes, ms, ms, at_any_cost=False))


def test_the_least_chance_is_that_of_the_cheapest_row() -> None:
    ms = linear(4.0, 1.0).__getitem__  # a row more costs a quarter of a step
    assert least_chance(2, ms) == pytest.approx(0.5)
    sure = Candidate(1, 0.51, 1e9)
    assert worth([sure], 2, ms, ms, at_any_cost=False) == [1]
    assert worth([Candidate(1, 0.49, 1e9)], 2, ms, ms, at_any_cost=False) == [0]
