"""Sampling: the filters' definitions, the noise's independence of the batch, and refused values."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.text_worker.drawing import choose, draw, probabilities
from services.text_worker.sampling import History, Sampler, Sampling, uniform

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
        {"min_p": -0.1},
        {"min_p": math.nan},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.inf},
        {"presence_penalty": 2.1},
        {"frequency_penalty": -2.1},
        {"logprobs": 21},
        {"logit_bias": ((1, 101.0),)},
        {"logit_bias": ((1, math.nan),)},
        {"logit_bias": ((1, 1.0), (1, 2.0))},
        {"logit_bias": tuple((i, 1.0) for i in range(1025))},
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
    likely = ((logits - logits.max()) / temperature).exp()  # logits may differ by less than this can show
    weakest = likely[kept > 0].min()
    assert (kept[likely > weakest] > 0).all()  # whatever is likelier than a kept token is kept
    assert (likely > weakest).sum() < top_k
    full = probabilities(logits, Sampling(temperature, top_k))
    likelier = full > full[kept > 0].min()
    assert full[likelier].sum() < top_p + 1e-6  # without the weakest the sum was not reached


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


@pytest.mark.parametrize("row", [[0.0, math.nan], [math.inf, 1.0], [-math.inf, -math.inf]])
def test_logits_that_are_not_finite_are_an_error(row: list[float]) -> None:
    with pytest.raises(FloatingPointError):
        choose(torch.tensor([[0.0, 1.0], row]), [Sampling()] * 2, [0, 0])


def test_top_p_over_a_flat_distribution_ranks_every_token() -> None:
    logits = torch.linspace(0.0, 0.1, 1000)  # the 128 likeliest hold far less than half
    kept = probabilities(logits, Sampling(1.0, top_p=0.5)) > 0
    full = logits.double().softmax(dim=-1).flip(0)  # likeliest first
    expected = int((full.cumsum(dim=-1) - full < 0.5).sum())
    assert kept.sum() == expected > 400
    assert kept[-expected:].all()


@given(ROWS, st.floats(0.0, 1.0), st.floats(0.1, 3.0))
@settings(max_examples=60, deadline=None)
def test_min_p_keeps_what_is_likely_enough(logits: torch.Tensor, min_p: float, temperature: float) -> None:
    kept = probabilities(logits, Sampling(temperature, min_p=min_p)) > 0
    likely = ((logits - logits.max()) / temperature).exp()
    assert torch.equal(kept, (likely >= min_p) & (likely > 0))


@pytest.mark.parametrize("vocab", [255, 256, 257, 5000])
@pytest.mark.parametrize("setting", [{}, {"top_p": 0.97}, {"top_k": 300}, {"min_p": 1e-3}, {"top_k": 40, "top_p": 0.5}])
@pytest.mark.parametrize("spread", [0.01, 3.0])
def test_what_is_drawn_is_the_token_at_the_noise(vocab: int, setting: dict[str, Any], spread: float) -> None:
    logits = spread * torch.randn(20, vocab, generator=torch.Generator().manual_seed(vocab))
    sampling = Sampling(0.9, seed=11, **setting)
    for position, token in enumerate(choose(logits, [sampling] * 20, range(20))):
        sums = probabilities(logits[position], sampling).cumsum(dim=-1)
        noise = uniform(11, position)
        before = sums[token - 1] if token else 0.0
        assert before - 1e-6 <= noise <= sums[token] + 1e-6


@pytest.mark.parametrize("setting", [{}, {"top_k": 7}, {"top_p": 0.6}])
def test_the_least_and_the_most_noise_draw_a_kept_token(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.tensor([[-1e4, 0.0, 1.0, -1e4] * 100])
    for noise in (0.0, 1.0 - 2**-53):
        monkeypatch.setattr("services.text_worker.drawing.uniform", lambda seed, position, noise=noise: noise)
        assert choose(logits, [Sampling(1.0, **setting)], [0])[0] % 4 in (1, 2)


def test_penalties_are_what_their_definitions_say() -> None:
    logits = torch.tensor([1.0, -1.0, 2.0, 0.5, 0.0, -3.0])
    sampling = Sampling(1.0, repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, logprobs=0)
    sampler = Sampler.start(sampling, prompt=[0, 1, 1], resumed=[2, 3, 2])
    sampler.accept(1)
    expected = torch.tensor([1 / 2, -1 * 2 - 0.5 - 0.25, 2 / 2 - 0.5 - 2 * 0.25, 0.5 / 2 - 0.5 - 0.25, 0.0, -3.0])
    before = logits.clone()
    for greedy, wanted in ((True, int(expected.argmax())), (False, None)):
        sampler.sampling = replace(sampling, temperature=0.0 if greedy else 1.0)
        drawn = draw(logits[None], [sampler])[0]
        if wanted is not None:
            assert drawn.token == wanted
        else:
            sums = expected.softmax(dim=-1).cumsum(dim=-1)
            assert drawn.token == int((sums < uniform(0, sampler.position)).sum())
        assert drawn.logprob == pytest.approx(float(before.log_softmax(dim=-1)[drawn.token]))  # the model's own
    assert torch.equal(logits, before)
    assert sampler.position == 4


def test_a_bias_forbids_and_forces() -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0]])
    assert draw(logits, [Sampler(Sampling(logit_bias=((1, -100.0),)))])[0].token == 2
    assert draw(logits, [Sampler(Sampling(logit_bias=((0, 100.0),)))])[0].token == 0


def test_logprobs_are_told_likeliest_first() -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0, 2.0]])
    drawn = draw(logits, [Sampler(Sampling(logprobs=3))])[0]
    logprobs = logits[0].log_softmax(dim=-1)
    assert [token for token, _ in drawn.likeliest] == [1, 3, 2]
    assert [value for _, value in drawn.likeliest] == pytest.approx(logprobs[[1, 3, 2]].tolist())
    assert draw(logits, [Sampler(Sampling())])[0].logprob is None


@given(st.lists(st.integers(0, 300), max_size=300), st.lists(st.integers(0, 300), max_size=300))
@settings(max_examples=30, deadline=None)
def test_a_history_counts_the_answer_and_knows_the_prompt(prompt: list[int], answer: list[int]) -> None:
    history = History(prompt)
    for token in answer:
        history.push(token)
    assert dict(zip(history.ids.tolist(), history.counts.tolist(), strict=True)) == {
        token: answer.count(token) for token in {*prompt, *answer}
    }


def test_rows_with_every_kind_of_setting_do_not_see_each_other() -> None:
    logits = torch.randn(6, 700, generator=torch.Generator().manual_seed(2))
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0},
        {"temperature": 1.0, "top_k": 5, "repetition_penalty": 1.3},
        {"temperature": 0.5, "min_p": 0.1, "logit_bias": ((3, 9.0),)},
        {"presence_penalty": 1.0, "logprobs": 2},
        {"temperature": 2.0, "top_p": 0.8, "logprobs": 1},
    ]
    samplers = [Sampler.start(Sampling(seed=i, **kind), [1, 2, 3], [4, 3]) for i, kind in enumerate(kinds)]
    together = draw(logits, samplers)
    assert together == [draw(logits[i : i + 1], samplers[i : i + 1])[0] for i in range(6)]
