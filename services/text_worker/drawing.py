"""Draws the next tokens of a batch at once, each row by its own settings; no row sees another.

Order: bias and penalties, the guide's mask, temperature, top-k, top-p over what that left, min-p. Ties at a border are
all kept. The token is the first, in the order of ids, at which the cumulated probability exceeds the row's noise.
"""

from collections.abc import Sequence as Several
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.text_worker.sampling import Drawn, Sampler, Sampling, uniform

RANKED = (256, 4096)
"""How many of the likeliest tokens are ranked before all are: nearly always enough, and cheap to find."""
BLOCK = 256
"""Tokens that are summed up together when none is left out."""
Floats = NDArray[np.float32]


def draw(logits: Tensor, samplers: Several[Sampler]) -> list[Drawn]:
    """One token a row of logits [rows, vocab] fp32, which are left as they are; the samplers do not move on.

    Raises FloatingPointError when a row holds NaN or no finite number: such a model's answer is worth nothing.
    """
    shaped = _shaped(logits, samplers)
    largest, likeliest = shaped.max(dim=-1)  # NaN is larger than any number
    if not bool(torch.isfinite(largest).all()):
        raise FloatingPointError("the model gave logits that are not finite")
    tokens: list[int] = likeliest.tolist()
    noisy = [row for row, sampler in enumerate(samplers) if not sampler.sampling.greedy]
    if noisy:
        temperatures = torch.tensor([[samplers[row].sampling.temperature] for row in noisy])
        scaled = (shaped[noisy] - largest[noisy, None]) / temperatures
        for row, weights in zip(noisy, scaled.exp_().numpy(), strict=True):
            tokens[row] = _drawn(weights, samplers[row])
    return [
        Drawn(token) if sampler.sampling.logprobs is None else _told(logits[row], sampler.sampling.logprobs, token)
        for row, (token, sampler) in enumerate(zip(tokens, samplers, strict=True))
    ]


def choose(logits: Tensor, samplings: Several[Sampling], positions: Several[int]) -> list[int]:
    """One token a row for settings that do not look back; `positions` are those of the tokens to be chosen."""
    samplers = [Sampler(sampling, position) for sampling, position in zip(samplings, positions, strict=True)]
    return [drawn.token for drawn in draw(logits, samplers)]


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution sampled from, fp64 [vocab], sums to 1; `sampling` is not greedy and does not look back."""
    weights = ((logits - logits.max()) / sampling.temperature).exp().numpy()
    kept = np.where(weights >= _least(weights, sampling), weights, 0).astype(np.float64)
    return torch.from_numpy(kept / kept.sum())


def _shaped(logits: Tensor, samplers: Several[Sampler]) -> Tensor:
    """With biases, penalties and masks; a copy where there are any."""
    shaped = logits
    for row, sampler in enumerate(samplers):
        if sampler.sampling.logit_bias or sampler.history is not None or sampler.guide is not None:
            shaped = logits.clone() if shaped is logits else shaped
            _shape(shaped[row], sampler)
    return shaped


def _shape(row: Tensor, sampler: Sampler) -> None:
    """Changes row [vocab] in place."""
    sampling, history = sampler.sampling, sampler.history
    if history is not None:
        ids = torch.from_numpy(history.ids)
        counts = torch.from_numpy(history.counts)
        seen, factor = row[ids], sampling.repetition_penalty
        seen = torch.where(seen > 0, seen / factor, seen * factor)
        row[ids] = seen - sampling.presence_penalty * (counts > 0) - sampling.frequency_penalty * counts
    if sampling.logit_bias:
        row[[token for token, _ in sampling.logit_bias]] += torch.tensor([bias for _, bias in sampling.logit_bias])
    if sampler.guide is not None:
        row.masked_fill_(~torch.from_numpy(sampler.guide.allowed()), float("-inf"))


def _drawn(weights: Floats, sampler: Sampler) -> int:
    """The token for one row's weights [vocab], of which the largest is 1."""
    noise = uniform(sampler.sampling.seed, sampler.position)
    if sampler.sampling.filtered:
        ids = np.flatnonzero(weights >= _least(weights, sampler.sampling))
        return int(ids[_place(weights[ids], noise)])
    sums = np.add.reduceat(weights, np.arange(0, len(weights), BLOCK)).astype(np.float64)
    block = _place(sums, noise)
    inside = weights[block * BLOCK : (block + 1) * BLOCK]
    return block * BLOCK + _place(inside, (noise * float(sums.sum()) - float(sums[:block].sum())) / float(sums[block]))


def _place(weights: NDArray[np.floating[Any]], noise: float) -> int:
    """The first place at which the cumulated weights exceed the noise's share of their sum."""
    sums = weights.cumsum(dtype=np.float64)
    place = int(np.searchsorted(sums, noise * sums[-1], side="right"))
    return min(place, int(np.searchsorted(sums, sums[-1])))  # rounding must not reach past the last likely token


def _least(weights: Floats, sampling: Sampling) -> float:
    """The smallest weight that every filter keeps, over 0."""
    total = float(weights.sum())
    for count in RANKED:
        if (sampling.top_k or 0) < count < len(weights):
            ranked = np.sort(np.partition(weights, -count)[-count:])[::-1]
            least = _least_of(ranked, total, sampling)
            if least > ranked[-1]:  # so all that are kept are among them
                return least
    return _least_of(np.sort(weights)[::-1], total, sampling)


def _least_of(ranked: Floats, total: float, sampling: Sampling) -> float:
    """See `_least`; `ranked` are the likeliest, falling, and more than `top_k` or all there are."""
    least = max(float(np.finfo(np.float32).smallest_subnormal), sampling.min_p)
    if sampling.top_k is not None and sampling.top_k < len(ranked):
        least = max(least, float(ranked[sampling.top_k - 1]))
        total = float(ranked[ranked >= ranked[sampling.top_k - 1]].sum())
    if sampling.top_p < 1.0:
        before = ranked.cumsum(dtype=np.float64) - ranked  # what the likelier tokens hold together
        least = max(least, float(ranked[before < sampling.top_p * total][-1]))
    return least


def _told(logits: Tensor, likeliest: int, token: int) -> Drawn:
    logprobs = logits.log_softmax(dim=-1)  # [vocab]
    top = logprobs.topk(min(likeliest, len(logprobs)))
    return Drawn(token, float(logprobs[token]), tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True)))
