"""Choosing the next token. Noise is a counter keyed by (seed, position), so it never sees the batch."""

import math
from collections.abc import Sequence as Several
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MAX_TEMPERATURE = 10.0
MAX_TOP_K = 2**20
SEED_LIMIT = 2**64
FIRST_RANKED = 128  # the likeliest tokens, which are nearly always enough for top-p and cheap to find


@dataclass(frozen=True)
class Sampling:
    """How to choose: temperature 0 is greedy; `top_k` None and `top_p` 1 keep every token.

    Raises ValueError naming the field and the limit.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= MAX_TEMPERATURE:
            raise ValueError(f"temperature: must be from 0 to {MAX_TEMPERATURE:g}, is {self.temperature}")
        if self.top_k is not None and not 1 <= self.top_k <= MAX_TOP_K:
            raise ValueError(f"top_k: must be from 1 to {MAX_TOP_K}, is {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p: must be over 0 and at most 1, is {self.top_p}")
        if not 0 <= self.seed < SEED_LIMIT:
            raise ValueError(f"seed: must be from 0 to {SEED_LIMIT - 1}, is {self.seed}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


def uniform(seed: int, position: int) -> float:
    """A token's one random number in [0, 1): Philox (Salmon et al. 2011), key seed, counter position."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution sampled from: fp64 [vocab], sums to 1. Top-k first, then top-p over what it left.

    Top-p keeps the fewest most likely tokens whose sum reaches it; ties at a border are all kept.
    """
    scaled = logits.double() / sampling.temperature  # [vocab]
    if sampling.top_k is not None and sampling.top_k < len(scaled):
        scaled = scaled.masked_fill(scaled < scaled.topk(sampling.top_k).values[-1], -math.inf)
    kept = scaled.softmax(dim=-1)
    if sampling.top_p < 1.0:
        ranked = kept.topk(min(FIRST_RANKED, len(kept))).values
        if ranked.sum() < sampling.top_p:  # a flat distribution: rank them all
            ranked = kept.sort(descending=True).values
        before = ranked.cumsum(dim=-1) - ranked  # what the more likely tokens hold together
        kept = kept.masked_fill(kept < ranked[before < sampling.top_p][-1], 0.0)
    return kept / kept.sum()


def choose(logits: Tensor, samplings: Several[Sampling], positions: Several[int]) -> list[int]:
    """One token a row. Logits [rows, vocab]; `positions` are those of the tokens to be chosen.

    Raises FloatingPointError when a row is not finite: such a model's answer is worth nothing.
    """
    if not bool(torch.isfinite(logits).all()):
        raise FloatingPointError("the model gave logits that are not finite")
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    for row, sampling in enumerate(samplings):
        if not sampling.greedy:
            tokens[row] = _draw(probabilities(logits[row], sampling), uniform(sampling.seed, positions[row]))
    return tokens


def _draw(kept: Tensor, noise: float) -> int:
    """The first token at which the cumulated probability exceeds the noise, in vocabulary order."""
    sums = kept.cumsum(dim=-1)
    token = int(torch.searchsorted(sums, noise * sums[-1].item(), right=True))
    return min(token, int(kept.nonzero()[-1]))  # rounding must not reach past the last likely token
