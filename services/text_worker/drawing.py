"""Draws the next tokens of a batch at once, each row by its own settings; no row sees another.

Order: penalties and bias, the guide's mask, then what `cpu.draws` does: temperature, top-k, top-p, min-p, the token.
"""

from collections.abc import Sequence as Several

import numpy as np
import torch
from torch import Tensor

from services.text_worker.cpu.draws import draw_rows, least_kept
from services.text_worker.sampling import Drawn, Sampler, Sampling, uniform


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
        for row, token in zip(noisy, _drawn(shaped, noisy, largest, samplers), strict=True):
            tokens[row] = token
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
    least = least_kept(weights, sampling.most(len(weights)), sampling.top_p, np.float32(sampling.min_p))
    kept = np.where(weights >= least, weights, 0).astype(np.float64)
    return torch.from_numpy(kept / kept.sum())


def _shaped(logits: Tensor, samplers: Several[Sampler]) -> Tensor:
    """With biases, penalties and masks; a copy where there are any."""
    penalised = [(row, sampler) for row, sampler in enumerate(samplers) if sampler.history is not None]
    biases = [(row, *bias) for row, sampler in enumerate(samplers) for bias in sampler.sampling.logit_bias]
    guides = [(row, sampler.guide) for row, sampler in enumerate(samplers) if sampler.guide is not None]
    if not (penalised or biases or guides):
        return logits
    shaped = logits.clone()
    for row, sampler in penalised:
        _penalise(shaped[row], sampler)
    if biases:
        rows, tokens, added = zip(*biases, strict=True)
        shaped.numpy()[list(rows), list(tokens)] += np.array(added, dtype=np.float32)  # no token twice in a row
    for row, guide in guides:
        shaped[row].masked_fill_(~torch.from_numpy(guide.allowed()), float("-inf"))
    return shaped


def _penalise(row: Tensor, sampler: Sampler) -> None:
    """Changes row [vocab] in place."""
    sampling, history = sampler.sampling, sampler.history
    assert history is not None
    ids = torch.from_numpy(history.ids)
    counts = torch.from_numpy(history.counts)
    seen, factor = row[ids], sampling.repetition_penalty
    seen = torch.where(seen > 0, seen / factor, seen * factor)
    row[ids] = seen - sampling.presence_penalty * (counts > 0) - sampling.frequency_penalty * counts


def _drawn(shaped: Tensor, rows: list[int], largest: Tensor, samplers: Several[Sampler]) -> list[int]:
    """A token for each of `rows` of shaped [any, vocab], whose largest logits [any] are finite."""
    samplings = [samplers[row].sampling for row in rows]
    tokens = np.empty(len(rows), dtype=np.int64)
    draw_rows(
        shaped.contiguous().numpy(),
        np.array(rows),
        largest.numpy()[rows],
        np.array([each.temperature for each in samplings], dtype=np.float32),
        np.array([each.most(shaped.shape[1]) for each in samplings]),
        np.array([each.top_p for each in samplings]),
        np.array([each.min_p for each in samplings], dtype=np.float32),
        np.array([uniform(samplers[row].sampling.seed, samplers[row].position) for row in rows]),
        tokens,
    )
    drawn: list[int] = tokens.tolist()
    return drawn


def _told(logits: Tensor, likeliest: int, token: int) -> Drawn:
    logprobs = logits.log_softmax(dim=-1)  # [vocab]
    top = logprobs.topk(min(likeliest, len(logprobs)))
    return Drawn(token, float(logprobs[token]), tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True)))
