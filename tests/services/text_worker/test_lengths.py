"""What is left of a text, against counting it out token by token."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.text_worker.lengths import LengthModel


def learned(hazard: float, texts: int = 400, most: int = 200, prompt: int = 20) -> LengthModel:
    """From texts that end after each token with this chance, cut at `most`."""
    draw, model = random.Random(3), LengthModel()
    for _ in range(texts):
        length = next((k for k in range(most) if draw.random() < hazard), most)
        model.observe(prompt_tokens=prompt, begun=0, new_tokens=length, ended=length < most)
    return model


def test_without_evidence_a_text_takes_all_its_tokens() -> None:
    assert LengthModel().left(10, 3, [1, 16, 100]) == [(1.0, 0.0), (16.0, 0.0), (100.0, 0.0)]


def test_mean_and_variance_are_those_of_a_geometric_length() -> None:
    hazard = 0.05
    ((mean, var),) = learned(hazard, texts=3000).left(20, 0, [200])
    assert mean == pytest.approx(1 / hazard, rel=0.1)
    assert var == pytest.approx((1 - hazard) / hazard**2, rel=0.25)


def test_texts_that_were_cut_say_no_more_than_that_they_went_on() -> None:
    """Half are cut at 10 tokens: counted as ends they would halve the length."""
    model, draw = LengthModel(), random.Random(5)
    for turn in range(3000):
        length, cut = int(draw.expovariate(1 / 40)), 10 if turn % 2 else 400
        model.observe(prompt_tokens=20, begun=0, new_tokens=min(length, cut), ended=length < cut)
    ((mean, _),) = model.left(20, 0, [400])
    assert 32 < mean < 48


def test_prompts_of_other_lengths_are_told_apart_and_yet_lend_each_other_evidence() -> None:
    model = learned(0.1, prompt=8)
    for _ in range(200):
        model.observe(prompt_tokens=300, begun=0, new_tokens=100, ended=False)
    short, long, between = (model.left(prompt, 0, [100])[0][0] for prompt in (8, 300, 60))
    assert short < between < long
    assert long > 3 * short


def test_a_text_that_went_on_is_expected_to_go_on() -> None:
    """Half end at once, half never: who passed the first tokens stays."""
    model = LengthModel()
    for turn in range(600):
        length = 2 if turn % 2 else 120
        model.observe(prompt_tokens=20, begun=0, new_tokens=length, ended=length == 2)
    assert model.left(20, 0, [100])[0][0] < 75
    assert model.left(20, 8, [100])[0][0] > 90


def test_what_is_learned_follows_what_is_asked() -> None:
    model = learned(0.2, texts=2000)
    before = model.left(20, 0, [100])[0][0]
    for _ in range(600):
        model.observe(prompt_tokens=20, begun=0, new_tokens=100, ended=False)
    assert model.left(20, 0, [100])[0][0] > 4 * before


def test_a_resumed_text_teaches_only_what_was_drawn_here() -> None:
    model = LengthModel()
    for _ in range(500):
        model.observe(prompt_tokens=20, begun=64, new_tokens=65, ended=True)
    assert model.left(20, 0, [32])[0][0] == pytest.approx(32.0)
    assert model.left(20, 64, [32])[0][0] < 8


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=12),
    st.integers(0, 50),
    st.lists(st.integers(1, 70), min_size=1, max_size=4, unique=True).map(sorted),
)
def test_the_sums_are_those_of_counting_it_out(texts: list[tuple[int, bool]], done: int, mosts: list[int]) -> None:
    model = LengthModel()
    for length, ended in texts:
        model.observe(prompt_tokens=5, begun=0, new_tokens=length, ended=ended)
    step = [model.left(5, done + k, [2])[0][0] - 1.0 for k in range(max(mosts))]  # the chance to pass position k
    for most, (mean, var) in zip(mosts, model.left(5, done, mosts), strict=True):
        alive, first, second = 1.0, 0.0, 0.0
        for k in range(most):
            first, second, alive = first + alive, second + (2 * k + 1) * alive, alive * step[k]
        assert mean == pytest.approx(first)
        assert var == pytest.approx(second - first * first, abs=1e-6)
        assert 1.0 - 1e-9 <= mean <= most + 1e-9
