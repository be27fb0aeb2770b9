"""The GPU's path gives every family that it serves the logits of the plain one; on a CPU too, where it is torch alone.

What differs between the two devices is who attends (Triton's kernel or its plain twin, which its own tests compare) and
whether the fixed steps are captured. The slow test runs the kernel itself, interpreted.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_family_logits import SHIPPED, VARIANTS, prompt, random_checkpoint

from headway.prefix import BLOCK_TOKENS
from services.text_worker.backend import Span
from services.text_worker.cuda.model import CudaModel, why_not
from services.text_worker.cuda.pages import CudaPages
from services.text_worker.model import dense
from services.text_worker.model.cache import KvCache
from services.text_worker.model.families import load_architecture

CONTEXT, LENGTHS, BLOCKS = 96, (70, 5, 40), 12
TABLES = ((7, 2, 9), (0, 1, 3), (10, 4, 5))
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
]


SERVED = (
    "llama_tied",
    "llama_biases",
    "llama_one_kv_head",
    "llama_llama3",
    "mistral_full",
    "mixtral",
    "qwen2",
    "qwen3",
)
LARGER = {"hidden_size": 64}
"""With four heads: the least that the kernel takes is 16 numbers a head."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Twins:
    """Both paths over one checkpoint; the newer one's cache holds NaN wherever nothing was written."""

    def __init__(self, folder: Path, device: str, dtype: torch.dtype = torch.float32, *, fixed_rows: int = 0) -> None:
        architecture = load_architecture(folder)
        assert why_not(architecture, CONTEXT) is None
        place = torch.device(device)
        self.ours = CudaModel.load(folder, architecture, dtype, context=CONTEXT, device=place)
        self.pages = CudaPages(architecture, BLOCKS, dtype, place)
        if fixed_rows:
            self.ours.prepare(self.pages, fixed_rows)
        self.pages.keys.fill_(torch.nan)
        self.pages.values.fill_(torch.nan)
        self.theirs = dense.DenseModel.load(folder, architecture, dtype, context=CONTEXT)
        self.cache = KvCache(architecture, slots=3, context=CONTEXT, dtype=dtype)
        self.vocab = architecture.vocab

    def both(self, rows: list[tuple[int, int, tuple[int, ...]]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(ours, theirs) of rows of sequence, start, tokens."""
        ours = self.ours.forward([Span(TABLES[i], start, tokens) for i, start, tokens in rows], self.pages)
        theirs = self.theirs.forward([dense.Span(i, start, tokens) for i, start, tokens in rows], self.cache)
        return ours, theirs

    def play(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Chunks of 17, 4 and 11 tokens side by side, then three decode steps together, and one of two alone."""
        prompts = [prompt(length, 3 + i, self.vocab) for i, length in enumerate(LENGTHS)]
        done, found = [0, 0, 0], []
        while any(done[i] < LENGTHS[i] for i in range(3)):
            counts = (17, 4, 11)
            left = [i for i in range(3) if done[i] < LENGTHS[i]]
            rows = [(i, done[i], tuple(prompts[i][done[i] : done[i] + counts[i]])) for i in left]
            found.append(self.both(rows))
            for i, start, tokens in rows:
                done[i] = start + len(tokens)
        decodes = [[(i, LENGTHS[i] + step, ((7 * i + step) % self.vocab,)) for i in range(3)] for step in range(3)]
        decodes.append([(i, LENGTHS[i] + 3, (5,)) for i in (0, 2)])
        return found + [self.both(rows) for rows in decodes]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", SERVED)
def test_logits_are_those_of_the_plain_path(variant: str, device: str, tmp_path: Path) -> None:
    family, options = VARIANTS[variant]
    folder = random_checkpoint(tmp_path, family, **(LARGER | options))
    for ours, theirs in Twins(folder, device, fixed_rows=4).play():
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_fixed_steps_give_what_free_ones_do(device: str) -> None:
    """Of up to 12 rows: decode steps, ends of prompts and both together, filled up to a size."""
    fixed, free = (Twins(SHIPPED, device, fixed_rows=rows) for rows in (12, 0))
    for (ours, _), (expected, _) in zip(fixed.play(), free.play(), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    for cache, other in ((fixed.pages.keys, free.pages.keys), (fixed.pages.values, free.pages.values)):
        assert torch.equal(cache[:, :-1].isnan(), other[:, :-1].isnan())  # what fills up writes to the last block alone


@pytest.mark.parametrize("device", DEVICES)
def test_a_row_for_each_draft_is_wanted_where_it_is_asked_for(device: str) -> None:
    twins = Twins(SHIPPED, device, fixed_rows=8)
    tokens = tuple(prompt(40, 1, twins.vocab))
    whole = twins.ours.forward([Span(TABLES[0], 0, tokens, wanted=40)], twins.pages)
    twins.ours.forward([Span(TABLES[1], 0, tokens[:36])], twins.pages)
    twins.ours.forward([Span(TABLES[2], 0, tokens[:20])], twins.pages)
    spans = [Span(TABLES[2], 20, tokens[20:22]), Span(TABLES[1], 36, tokens[36:], wanted=4)]
    found = twins.ours.forward(spans, twins.pages)
    torch.testing.assert_close(found, whole[[21, 36, 37, 38, 39]], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_stays_near_fp32(device: str) -> None:
    """Mean KL divergence in nats of the next token's distribution."""
    low, exact = (Twins(SHIPPED, device, dtype, fixed_rows=4).play() for dtype in (torch.bfloat16, torch.float32))
    ours, theirs = (torch.cat([ours for ours, _ in pairs]).log_softmax(-1) for pairs in (low, exact))
    assert 0.0 <= (theirs.exp() * (theirs - ours)).sum(-1).mean() < 0.02


def test_a_copied_block_serves_as_its_original() -> None:
    twins = Twins(SHIPPED, "cpu")
    tokens = tuple(prompt(50, 1, twins.vocab))
    twins.ours.forward([Span(TABLES[0], 0, tokens)], twins.pages)
    expected = twins.ours.forward([Span(TABLES[0], 50, (5,))], twins.pages)
    twins.pages.copy(TABLES[0][0], 8)
    found = twins.ours.forward([Span((8, *TABLES[0][1:]), 50, (5,))], twins.pages)
    torch.testing.assert_close(found, expected)


def test_what_the_kernels_do_not_serve_is_named() -> None:
    architecture = load_architecture(SHIPPED)
    layer = architecture.layers[0]

    def with_attention(**options: object) -> str | None:
        attention = replace(layer.attention, **options)
        return why_not(replace(architecture, layers=(layer, replace(layer, attention=attention))), CONTEXT)

    assert with_attention() is None
    assert with_attention(window=CONTEXT) is None  # never reached
    assert "window of 32" in (with_attention(window=32) or "")
    assert "softcap" in (with_attention(softcap=50.0) or "")


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
    twins = Twins(SHIPPED, "cpu")
    with pytest.raises(ValueError, match="span"):
        twins.ours.forward([span], twins.pages)


@pytest.mark.slow
def test_the_kernel_itself_interpreted_gives_the_plain_paths_logits(tmp_path: Path) -> None:
    """In a process of its own, because Triton reads the variable when it is imported."""
    pytest.importorskip("triton")
    out = tmp_path / "logits.npz"
    folder = random_checkpoint(tmp_path, **LARGER)
    code = (
        "import sys, numpy, torch; torch.set_num_threads(1); from test_cuda_families import Path, Twins;"
        "pairs = Twins(Path(sys.argv[1]), 'cpu', fixed_rows=4).play();"
        "numpy.savez(sys.argv[2], *(each.numpy() for pair in pairs for each in pair))"
    )
    paths = [str(Path(__file__).parent), str(Path.cwd())]
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, str(folder), str(out)], env=env, check=True, timeout=80)
    arrays = list(np.load(out).values())
    for ours, theirs in zip(arrays[::2], arrays[1::2], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)
