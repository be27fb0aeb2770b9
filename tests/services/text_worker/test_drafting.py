"""Drafts from a small model: the same tokens bit for bit, whoever guesses, and nothing left in its cache.

The shipped model guesses for itself, which is always right, and so does one of random weights, which is nearly never.
"""

import json
import shutil
from collections.abc import Sequence as Several
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_speculation_in_engine import ARCHITECTURE, COSTS, REPEATED, TELLING, Play, model, sequence, some_prompts
from text_rig import MODEL, ask, served
from transformers import LlamaConfig, LlamaForCausalLM

from headway.config import ConfigError, read
from headway.cost import Cost, StepCurve
from headway.prefix import BLOCK_TOKENS
from headway.server import StartError
from services.text_worker.config import TextWorkerConfig
from services.text_worker.costs import TextCosts
from services.text_worker.cpu.model import CpuModel
from services.text_worker.drafting import Drafter
from services.text_worker.kv.pages import Pages
from services.text_worker.kv.store import KvStore
from services.text_worker.model.families import load_architecture
from services.text_worker.sampling import Sampling
from services.text_worker.speculation import MOST_DRAFTS

CHEAP = TextCosts(
    decode=StepCurve(((1, Cost(0.2)), (8, Cost(0.3)))), prefill=StepCurve(((8, Cost(0.2)),)), chunk_tokens=64
)
SAMPLED = [replace(TELLING, temperature=temperature, seed=seed) for seed, temperature in enumerate((0.3, 0.8, 1.5))]


def small_model(folder: Path, vocab: int = ARCHITECTURE.vocab) -> Path:
    """A checkpoint of random weights that has the shipped model's tokens."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    shutil.copy(MODEL / "tokenizer.json", folder)
    return folder


def drafter_of(runs: CpuModel, blocks: int = 64, costs: TextCosts = CHEAP) -> Drafter:
    """Keys and values are kept as the play keeps those of the model."""
    return Drafter(runs, KvStore(Pages(runs.architecture, blocks + 1)), costs)


def own(blocks: int = 64, costs: TextCosts = CHEAP) -> Drafter:
    return drafter_of(model("int8"), blocks, costs)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> CpuModel:
    folder = small_model(tmp_path_factory.mktemp("draft"))
    return CpuModel.load(folder, load_architecture(folder), "fp32")


def played(
    drafter: Drafter | None, prompts: Several[tuple[int, ...]], samplings: Several[Sampling]
) -> tuple[list, Play]:
    """What came of the prompts, and the play; afterwards the drafter's cache is as empty as before."""
    play = Play("off" if drafter is None else "draft", drafter=drafter)
    works = [sequence(prompt, sampling=sampling) for prompt, sampling in zip(prompts, samplings, strict=True)]
    found = [(one.text, one.told, one.reason) for one in play.run(*works)]
    if drafter is not None:
        assert drafter._store.pool.available == drafter._store.pool.blocks
        assert not drafter._lines
    return found, play


@pytest.mark.parametrize("guesses", ["its own", "random"])
def test_answers_are_the_same_bits_whoever_guesses(guesses: str, random_model: CpuModel) -> None:
    """Greedy and sampled texts beside each other in a batch."""
    prompts = [REPEATED, *some_prompts(3)]
    samplings = [TELLING, *SAMPLED]
    expected, plain = played(None, prompts, samplings)
    found, play = played(own() if guesses == "its own" else drafter_of(random_model), prompts, samplings)
    assert found == expected
    assert play.drafted > 20
    if guesses == "its own":
        assert play.accepted == play.drafted, "the noise of a place is the same for both models"
        assert play.steps < plain.steps / 3
    else:
        assert play.accepted < play.drafted / 2


def test_a_full_cache_and_a_short_context_cost_guesses_and_nothing_else(random_model: CpuModel) -> None:
    prompts, samplings = [REPEATED, *some_prompts(3)], [TELLING] * 4
    expected, _ = played(None, prompts, samplings)
    _, roomy = played(own(), prompts, samplings)
    crowded, play = played(own(blocks=5), prompts, samplings)
    assert crowded == expected
    assert 0 < play.drafted < roomy.drafted
    near = tuple(range(2, 2 + 240))
    far, _ = played(None, [near], [TELLING])
    short, play = played(drafter_of(random_model), [near], [TELLING])
    assert short == far
    assert 0 < play.drafted <= (256 - 240) * MOST_DRAFTS


def test_who_finds_no_room_for_guesses_keeps_no_block_for_them() -> None:
    """Both are promised the last blocks of the small model's cache, and the first takes them."""
    near_a_block = [tuple(range(first, first + BLOCK_TOKENS - 2)) for first in (50, 90)]
    expected, _ = played(None, near_a_block, [TELLING] * 2)
    found, play = played(own(blocks=2), near_a_block, [TELLING] * 2)
    assert found == expected
    assert play.drafted > 0


def test_what_was_guessed_right_is_not_run_again() -> None:
    drafter, work = own(), sequence()
    assert drafter.lag(work) == len(work.tokens)
    (guessed,) = drafter.drafts([(work, 4)])
    assert len(guessed) == 4
    work.tokens += [*guessed, 5]
    assert drafter.lag(work) == 2, "the last guess was not run, nor is the token that the large model added"
    work.tokens[-5:] = [guessed[0], guessed[1] + 1]
    assert drafter.lag(work) == 1
    drafter.release(work)
    assert drafter.lag(work) == len(work.tokens)


def test_guessing_is_paid_for_and_left_where_it_does_not_pay() -> None:
    dear = replace(COSTS, decode=StepCurve(((1, Cost(40.0)),)), prefill=StepCurve(((8, Cost(40.0)),)))
    prompts = some_prompts(2)
    for costs, pays in ((CHEAP, True), (dear, False)):
        drafter = own(costs=costs)
        play = Play("auto", drafter=drafter)
        play.run(*(sequence(prompt) for prompt in prompts))
        assert (play.drafted > 20) == pays
    assert drafter.cost([(30, MOST_DRAFTS), (1, 2)]).mean_ms == pytest.approx(
        dear.prefill_cost(29).mean_ms + MOST_DRAFTS * 40.0
    )
    assert drafter.cost([]).mean_ms == 0


async def test_a_worker_with_a_draft_model_answers_the_same(tmp_path: Path) -> None:
    request = {"max_tokens": 64}
    async with served(tmp_path, weights="int8", speculate="off") as channel:
        expected = await ask(channel, **request)
    options = {"speculate": "draft", "draft_model": MODEL}
    async with served(tmp_path, weights="int8", **options) as channel:
        found = await ask(channel, **request)
    assert (found.token_ids, found.text) == (expected.token_ids, expected.text)
    assert max(found.chunk_sizes) > 1, "tokens of one step travel together"


async def test_a_draft_model_with_other_tokens_is_refused_at_start(tmp_path: Path) -> None:
    other = small_model(tmp_path / "other", vocab=ARCHITECTURE.vocab + 1)
    with pytest.raises(StartError, match=r"draft_model: vocab_size"):
        async with served(tmp_path, draft_model=other):
            pass
    named = small_model(tmp_path / "named")
    content = json.loads((named / "tokenizer.json").read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    words["age"], words["ule"] = words["ule"], words["age"]
    (named / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(StartError, match=r"draft_model: tokenizer.json: its tokens are not the model's"):
        async with served(tmp_path, draft_model=named):
            pass


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--speculate", "draft"), "draft needs draft_model"),
        (("--speculate", "lookup", "--draft-model", str(MODEL)), "speculate lookup does not ask it"),
        (("--draft-model", str(MODEL), "--engine", "openai", "--base-url", "http://127.0.0.1:1/v1"), "engine own"),
        (("--draft-model", str(MODEL / "nothing")), "draft_model"),
    ],
)
def test_contradictory_settings_are_refused(flags: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(TextWorkerConfig, flags, prog="text", env={})
    assert says in str(refused.value.lines)
