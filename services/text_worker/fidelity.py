"""What fewer bits cost a checkpoint: `python -m services.text_worker.fidelity --weights int8`.

Teacher-forced on the same text, against fp32 weights: perplexity of both, mean Kullback-Leibler divergence of the next
token's distribution, and how often the likeliest token is the same.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from services.text_worker.backend import Span
from services.text_worker.config import default_model
from services.text_worker.cpu.linear import WeightKind
from services.text_worker.cpu.model import CpuModel
from services.text_worker.kv.pages import Pages
from services.text_worker.kv.store import blocks_of
from services.text_worker.model.architecture import Architecture
from services.text_worker.model.families import load_architecture
from services.text_worker.tokenizer import load_tokenizer
from services.text_worker.training.corpus import collect, split
from services.text_worker.training.settings import Fit

WINDOW_TOKENS = 256


@dataclass(frozen=True)
class Fidelity:
    """Of one kind of weights against fp32, over `tokens` predictions."""

    tokens: int
    perplexity: float
    perplexity_fp32: float
    divergence_nats: float
    same_top_share: float


def fidelity(folder: Path, architecture: Architecture, kind: WeightKind, windows: Iterable[list[int]]) -> Fidelity:
    """Runs every window of at least 2 tokens through both. Blocks. Raises CheckpointError, and ValueError for none."""
    kinds: tuple[WeightKind, WeightKind] = ("fp32", kind)
    models = [CpuModel.load(folder, architecture, each, context=WINDOW_TOKENS) for each in kinds]
    pages = [Pages(architecture, blocks_of(WINDOW_TOKENS), model.element) for model in models]
    sums, tokens = torch.zeros(4, dtype=torch.float64), 0
    for window in windows:
        truth, other = (_logprobs(model, own, window) for model, own in zip(models, pages, strict=True))
        sums += _sums(truth, other, torch.tensor(window[1:]))
        tokens += len(window) - 1
    if not tokens:
        raise ValueError("the text is too short: it has no token to predict")
    loss_fp32, loss, divergence, same = (sums / tokens).tolist()
    return Fidelity(tokens, math.exp(loss), math.exp(loss_fp32), divergence, same)


def windows_of(tokens: list[int], most: int) -> Iterator[list[int]]:
    """Up to `most` windows of `WINDOW_TOKENS`; the last may be shorter, but has 2 tokens at least."""
    for start in range(0, min(len(tokens), most * WINDOW_TOKENS), WINDOW_TOKENS):
        if len(tokens) - start > 1:
            yield tokens[start : start + WINDOW_TOKENS]


def _logprobs(model: CpuModel, pages: Pages, window: list[int]) -> Tensor:
    span = Span(range(pages.blocks), 0, window, wanted=len(window))
    return model.forward([span], pages)[:-1].double().log_softmax(dim=-1)  # [tokens - 1, vocab]


def _sums(truth: Tensor, other: Tensor, following: Tensor) -> Tensor:
    """Losses in nats of both, divergence of `other` from `truth`, and equal likeliest tokens, summed over rows."""
    rows = torch.arange(len(following))
    divergence = (truth.exp() * (truth - other)).sum()
    same = (truth.argmax(dim=-1) == other.argmax(dim=-1)).sum()
    return torch.stack([-truth[rows, following].sum(), -other[rows, following].sum(), divergence, same.double()])


def main(
    model: Annotated[Path, typer.Option(help="Folder of the checkpoint.")] = default_model(),  # noqa: B008
    weights: Annotated[str, typer.Option(help="bf16 or int8.")] = "int8",
    text: Annotated[Path | None, typer.Option(help="UTF-8 file; without it the shipped model's held-out text.")] = None,
    windows: Annotated[int, typer.Option(help=f"Windows of {WINDOW_TOKENS} tokens.", min=1)] = 64,
) -> None:
    """Prints what the weights' kind costs in quality."""
    if weights not in ("bf16", "int8"):
        raise typer.BadParameter("must be bf16 or int8", param_hint="--weights")
    architecture = load_architecture(model)
    written = text.read_text("utf-8") if text else _held_out()
    tokens = load_tokenizer(model, architecture).encode(written)
    kind: WeightKind = "int8" if weights == "int8" else "bf16"
    found = fidelity(model, architecture, kind, windows_of(tokens, windows))
    print(
        f"{weights}: perplexity {found.perplexity:.3f} (fp32 {found.perplexity_fp32:.3f}), "
        f"divergence {found.divergence_nats:.5f} nats, same likeliest token {found.same_top_share:.2%}, "
        f"over {found.tokens} tokens"
    )


def _held_out() -> str:
    _, held_out = split(collect(), Fit().held_out_share)
    return "\n\n".join(document.text for document in held_out)


if __name__ == "__main__":
    typer.run(main)
