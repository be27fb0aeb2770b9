"""The card of a trained model: how it was made, from what, and what it was measured to do."""

import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from services.text_worker.drawing import choose
from services.text_worker.fidelity import WINDOW_TOKENS, Fidelity
from services.text_worker.model.cache import KvCache
from services.text_worker.model.dense import DenseModel, Span
from services.text_worker.model.families import load_architecture
from services.text_worker.model.weights import fingerprint
from services.text_worker.sampling import Sampling
from services.text_worker.tokenizer import TextTokenizer, load_tokenizer
from services.text_worker.training.export import write_json
from services.text_worker.training.fit import Outcome
from services.text_worker.training.settings import Fit, Shape

RECIPE = "python -m services.text_worker.training"
LICENCE = "weights Apache-2.0; training text PSF-2.0 (Copyright Python Software Foundation)"
QUESTIONS = (
    "What is asyncio.Queue?",
    "What does os.path.join do?",
    "Explain the with statement in Python.",
)
BEGINNINGS = ("The iterator protocol", "This module provides")
SAMPLE_TOKENS = 60
SAMPLING = Sampling(temperature=0.5, top_p=0.9, seed=1)


@dataclass(frozen=True)
class Held:
    """The held-out measurement of the shipped file. Loss in nats a token; `text_bytes` is the UTF-8 size."""

    loss: float
    tokens: int
    text_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Comparable between vocabularies, unlike perplexity."""
        return self.loss * self.tokens / math.log(2) / self.text_bytes


@dataclass(frozen=True)
class Data:
    """The corpus of a run; the digest names it exactly."""

    documents: int
    held_out_documents: int
    train_tokens: int
    sha256: str


def write_card(
    out: Path, shape: Shape, fit: Fit, data: Data, outcome: Outcome, held: Held, fewer_bits: Mapping[str, Fidelity]
) -> None:
    """Writes card.json and README.md beside the checkpoint in `out`, with samples drawn from it as served.

    fewer_bits: what each kind of weights changes on held-out text.
    """
    architecture = load_architecture(out)
    model, tokenizer = DenseModel.load(out, architecture), load_tokenizer(out, architecture)
    card: dict[str, Any] = {
        "name": "headway-text-3m",
        "kind": "text",
        "recipe": RECIPE,
        "licence": LICENCE,
        "data": {"source": f"standard library of CPython {platform.python_version()}", **asdict(data)},
        "seed": fit.seed,
        "parameters": model.parameters,
        "precision": "float16",
        "shape": asdict(shape),
        "fit": asdict(fit),
        "best_step": outcome.step,
        "figures": {
            "held_out_loss_nats_per_token": round(held.loss, 4),
            "held_out_perplexity": round(math.exp(held.loss), 2),
            "held_out_bits_per_byte": round(held.bits_per_byte, 3),
            "held_out_tokens": held.tokens,
            "fewer_bits": {kind: asdict(figures) for kind, figures in fewer_bits.items()},
        },
        "fingerprint": fingerprint(out),
        "sampling": asdict(SAMPLING),
        "samples": _samples(model, tokenizer),
    }
    write_json(out / "card.json", card)
    (out / "README.md").write_text(_readme(card), encoding="utf-8")


def _samples(model: DenseModel, tokenizer: TextTokenizer) -> list[dict[str, str]]:
    chats = [(q, tokenizer.encode_chat([{"role": "user", "content": q}])) for q in QUESTIONS]
    plain = [(text, tokenizer.encode(text)) for text in BEGINNINGS]
    return [{"prompt": text, "answer": _answer(model, tokenizer, tokens)} for text, tokens in (*chats, *plain)]


def _answer(model: DenseModel, tokenizer: TextTokenizer, prompt: list[int]) -> str:
    cache = KvCache(model.architecture, slots=1, context=min(model.architecture.context, len(prompt) + SAMPLE_TOKENS))
    tokens, done = list(prompt), 0
    while len(tokens) < cache.context:
        logits = model.forward([Span(0, done, tuple(tokens[done:]))], cache)
        done = len(tokens)
        token = choose(logits, [SAMPLING], [done])[0]
        if token in tokenizer.eos_ids:
            break
        tokens.append(token)
    return tokenizer.decode(tokens[len(prompt) :])


def _readme(card: dict[str, Any]) -> str:
    figures, data, shape = card["figures"], card["data"], card["shape"]
    samples = "\n\n".join(f"> **{s['prompt']}**{_quoted(s['answer'])}" for s in card["samples"])
    fewer = "\n".join(_fewer_row(kind, found) for kind, found in figures["fewer_bits"].items())
    return f"""# {card["name"]}

A Llama-family language model of {card["parameters"] / 1e6:.2f}M parameters (hidden {shape["hidden"]}, \
{shape["layers"]} layers, {shape["heads"]} query and {shape["kv_heads"]} key/value heads, tied embeddings, \
context {shape["context"]}), small enough to ship in a repository. It writes the prose of Python's \
documentation: readable, and often wrong. It is the default of Headway's text worker, there to show real \
tokens under real deadlines, not to be relied on.

| | |
|---|---|
| recipe | `{card["recipe"]}`, under an hour on one CPU core |
| data | {data["documents"]} documents ({data["held_out_documents"]} held out) of the {data["source"]}: \
language reference, docstrings, comments; {data["train_tokens"]} tokens; sha256 `{data["sha256"][:16]}` |
| licence | {card["licence"]} |
| seed | {card["seed"]} |
| held-out loss | {figures["held_out_loss_nats_per_token"]} nats a token: perplexity \
{figures["held_out_perplexity"]}, {figures["held_out_bits_per_byte"]} bits a byte, over \
{figures["held_out_tokens"]} tokens, measured on these files in fp32 |
{fewer}

Samples at temperature {card["sampling"]["temperature"]}, top-p {card["sampling"]["top_p"]}, seed \
{card["sampling"]["seed"]}, at most {SAMPLE_TOKENS} tokens, as they came:

{samples}
"""


def _fewer_row(kind: str, found: Mapping[str, Any]) -> str:
    return (
        f"| as {kind} | perplexity {found['perplexity']:.2f} where fp32 has {found['perplexity_fp32']:.2f}, KL "
        f"divergence {found['divergence_nats']:.5f} nats, same likeliest token {found['same_top_share']:.1%}, over "
        f"{found['tokens']} held-out tokens in windows of {WINDOW_TOKENS} |"
    )


def _quoted(text: str) -> str:
    return " " + " ".join(text.split())
