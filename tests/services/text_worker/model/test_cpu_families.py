"""The CPU path gives every family the logits of the plain one, over scattered blocks and however prompts are cut."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from test_family_logits import SHIPPED, VARIANTS, prompt, random_checkpoint

from headway.prefix import BLOCK_TOKENS, ElementType
from services.text_worker.backend import Span
from services.text_worker.cpu import attention_amx
from services.text_worker.cpu.compiled import use_threads
from services.text_worker.cpu.linear import WeightKind
from services.text_worker.cpu.model import CpuModel
from services.text_worker.kv.pages import Pages
from services.text_worker.model import dense
from services.text_worker.model.cache import KvCache
from services.text_worker.model.families import load_architecture


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    use_threads(1)


CONTEXT, LENGTHS = 96, (70, 5, 40)
BLOCKS = 12
TABLES = ((7, 2, 9), (0, 1, 3), (11, 4, 5))


@dataclass
class Twins:
    ours: CpuModel
    theirs: dense.DenseModel
    pages: Pages
    cache: KvCache


def load_twins(
    folder: Path, kind: WeightKind = "fp32", *, invariant: bool = False, element: ElementType | None = None
) -> Twins:
    architecture = load_architecture(folder)
    ours = CpuModel.load(folder, architecture, kind, context=CONTEXT, invariant=invariant)
    pages = Pages(architecture, BLOCKS, element or ours.element)
    for array in (*pages.keys, *pages.values):
        array[:] = 0x7FC0 if pages.paired else np.nan  # not a number: what was never written must not count
    theirs = dense.DenseModel.load(folder, architecture, context=CONTEXT)
    return Twins(ours, theirs, pages, KvCache(architecture, slots=3, context=CONTEXT))


def both(twins: Twins, rows: list[tuple[int, int, tuple[int, ...]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(ours, theirs) of rows of sequence, start, tokens."""
    ours = twins.ours.forward([Span(TABLES[i], start, tokens) for i, start, tokens in rows], twins.pages)
    theirs = twins.theirs.forward([dense.Span(i, start, tokens) for i, start, tokens in rows], twins.cache)
    return ours, theirs


def play(twins: Twins, seed: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Chunks of 17, 4 and 11 tokens side by side, then three decode steps together."""
    vocab = twins.ours.architecture.vocab
    prompts = [prompt(length, seed + i, vocab) for i, length in enumerate(LENGTHS)]
    done, found = [0, 0, 0], []
    while any(done[i] < LENGTHS[i] for i in range(3)):
        rows = [
            (i, done[i], tuple(prompts[i][done[i] : done[i] + (17, 4, 11)[i]]))
            for i in range(3)
            if done[i] < LENGTHS[i]
        ]
        found.append(both(twins, rows))
        for i, start, tokens in rows:
            done[i] = start + len(tokens)
    decodes = [[(i, LENGTHS[i] + step, ((7 * i + step) % vocab,)) for i in range(3)] for step in range(3)]
    return found + [both(twins, rows) for rows in decodes]


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_plain_path(variant: str, tmp_path: Path) -> None:
    family, options = VARIANTS[variant]
    for ours, theirs in play(load_twins(random_checkpoint(tmp_path, family, **options))):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_keys_and_values_in_16_bits_stay_near(variant: str, tmp_path: Path) -> None:
    """Each family's masks and caps over pages of bf16, weights as they are."""
    family, options = VARIANTS[variant]
    for ours, theirs in play(load_twins(random_checkpoint(tmp_path, family, **options), element=ElementType.BFLOAT16)):
        assert float((ours - theirs).norm() / theirs.norm()) < 0.02


def without_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU without AMX."""
    monkeypatch.setattr(attention_amx, "usable", lambda head_dim: False)


@pytest.mark.parametrize("tiles", [True, False])
@pytest.mark.parametrize(("kind", "limit"), [("bf16", 0.02), ("int8", 0.03)])
def test_fewer_bits_stay_near_on_the_trained_model(
    kind: WeightKind, limit: float, tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mean KL divergence in nats from fp32's distribution of the next token."""
    if not tiles:
        without_tiles(monkeypatch)
    pairs = play(load_twins(SHIPPED, kind))
    ours, theirs = (torch.cat(logits).log_softmax(-1) for logits in zip(*pairs, strict=True))
    divergence = (theirs.exp() * (theirs - ours)).sum(-1).mean()
    assert 0.0 <= divergence < limit


@pytest.mark.parametrize("tiles", [True, False])
@pytest.mark.parametrize(("kind", "invariant"), [("int8", False), ("fp32", True), ("bf16", True)])
def test_a_tokens_bits_do_not_depend_on_batch_or_chunks(
    kind: WeightKind, invariant: bool, tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not tiles:
        without_tiles(monkeypatch)
    twins = load_twins(SHIPPED, kind, invariant=invariant)
    tokens = tuple(prompt(60, 1, twins.ours.architecture.vocab))
    whole = twins.ours.forward([Span(TABLES[0], 0, tokens, wanted=60)], twins.pages)
    chunks = [Span(TABLES[1], start, tokens[start : start + 6], wanted=6) for start in range(0, 60, 6)]
    cut = [twins.ours.forward([chunk], twins.pages) for chunk in chunks]
    assert torch.equal(whole, torch.cat(cut))
    others = [Span(TABLES[1], 10, tokens[5:30]), Span(TABLES[2], 3, tokens[:1])]
    beside = twins.ours.forward([others[0], Span(TABLES[0], 59, tokens[59:]), others[1]], twins.pages)
    assert torch.equal(beside[1], whole[-1])


@pytest.mark.parametrize(
    "span",
    [
        Span((0, 1), 0, ()),
        Span((0, 1, 2, 3), CONTEXT, (1,)),
        Span((0,), BLOCK_TOKENS, (1,)),
        Span((0,), 0, (1, 2), wanted=3),
    ],
)
def test_a_span_that_does_not_fit_is_refused(span: Span) -> None:
    twins = load_twins(SHIPPED)
    with pytest.raises(ValueError, match="span"):
        twins.ours.forward([span], twins.pages)
