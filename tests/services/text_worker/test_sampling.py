"""Sampling: the filters' definitions, the noise's independence of the batch, and refused values."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.text_worker.sampling import Sampling, choose, probabilities, uniform

ROWS = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=30).map(torch.tensor)


@pytest.mark.parametrize(
    "field",
    [
        {"temperature": -0.1},
        {"temperature": 10.5},
        {"temperature": math.nan},
        {"top_k": 0},
        {"top_k": 2**21},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": math.nan},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_a_bad_value_names_its_field(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        Sampling(**field)


@given(ROWS)
@settings(max_examples=50, deadline=None)
def test_greedy_takes_the_most_likely(logits: torch.Tensor) -> None:
    assert logits[choose(logits[None], [Sampling()], [0])[0]] == logits.max()


@given(ROWS, st.integers(1, 40), st.floats(0.05, 1.0), st.floats(0.1, 3.0))
@settings(max_examples=100, deadline=None)
def test_filters_keep_what_they_say(logits: torch.Tensor, top_k: int, top_p: float, temperature: float) -> None:
    kept = probabilities(logits, Sampling(temperature, top_k, top_p))
    assert abs(kept.sum().item() - 1) < 1e-9
    assert kept[logits.argmax()] > 0
    weakest = logits[kept > 0].min()
    assert (kept[logits > weakest] > 0).all()  # whatever is likelier than a kept token is kept
    assert (logits > weakest).sum() < top_k
    full = probabilities(logits, Sampling(temperature, top_k))
    likelier = full > full[kept > 0].min()  # by probability: logits may differ by less than it can show
    assert full[likelier].sum() < top_p + 1e-9  # without the weakest the sum was not reached


def test_frequencies_follow_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -9.0])
    sampling = Sampling(temperature=0.8, seed=3)
    count = 4000
    drawn = choose(logits.expand(count, -1), [sampling] * count, range(count))
    shares = torch.bincount(torch.tensor(drawn), minlength=5) / count
    assert (shares - probabilities(logits, sampling)).abs().max() < 0.03


def test_the_batch_around_a_row_does_not_matter() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(1))
    samplings = [Sampling(0.7 + 0.1 * i, top_k=20, top_p=0.9, seed=i // 2) for i in range(6)]
    together = choose(logits, samplings, range(6))
    alone = [choose(logits[i : i + 1], [samplings[i]], [i])[0] for i in range(6)]
    assert together == alone


def test_noise_differs_by_seed_and_by_position() -> None:
    drawn = {uniform(seed, position) for seed in (0, 1, 2**64 - 1) for position in range(50)}
    assert len(drawn) == 150
    assert uniform(5, 9) == uniform(5, 9)


def test_logits_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(FloatingPointError):
        choose(torch.tensor([[0.0, math.nan]]), [Sampling()], [0])


def test_top_p_over_a_flat_distribution_ranks_every_token() -> None:
    logits = torch.linspace(0.0, 0.1, 1000)  # the 128 likeliest hold far less than half
    kept = probabilities(logits, Sampling(1.0, top_p=0.5)) > 0
    full = logits.double().softmax(dim=-1).flip(0)  # likeliest first
    expected = int((full.cumsum(dim=-1) - full < 0.5).sum())
    assert kept.sum() == expected > 400
    assert kept[-expected:].all()
