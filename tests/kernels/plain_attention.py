"""Attention written once more, as plainly as torch allows: what tests differentiate with torch.func and autograd."""

from __future__ import annotations

from itertools import pairwise

import torch

from kernels.ragged import Ragged


def plain_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """q [..., heads, q_tokens, head_dim]; (o, lse). A row without keys gives 0 and an lse of about -1e30."""
    group = q.shape[-3] // k.shape[-3]
    k, v = k.repeat_interleave(group, -3), v.repeat_interleave(group, -3)
    seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool)
    if causal:
        seen = seen.tril(k.shape[-2] - q.shape[-2])
    scores = (scale * q @ k.mT).masked_fill(~seen, -1e30)
    if k.shape[-2] == 0:
        return q * 0, q.sum(-1) * 0 - 1e30
    return (scores.softmax(-1) * seen) @ v, scores.logsumexp(-1)


def plain_ragged_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float, ragged: Ragged
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, one packed sequence after the other: o [tokens, heads, head_dim], lse [heads, tokens]."""
    outputs, rows = [], []
    spans = zip(pairwise(ragged.q_offsets.tolist()), pairwise(ragged.k_offsets.tolist()), strict=True)
    for (q_start, q_end), (k_start, k_end) in spans:
        parts = (each.transpose(0, 1) for each in (q[q_start:q_end], k[k_start:k_end], v[k_start:k_end]))
        o, lse = plain_attention(*parts, causal, scale)
        outputs.append(o.transpose(0, 1))
        rows.append(lse)
    return torch.cat(outputs), torch.cat(rows, 1)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, relative: float) -> None:
    """Relative error in the 2-norm, so that no single tiny entry decides; nothing may be NaN."""
    assert actual.shape == expected.shape
    assert not actual.isnan().any()
    difference = (actual.double() - expected.double()).norm()
    assert difference <= relative * max(expected.double().norm().item(), 1e-3 * expected.numel() ** 0.5), difference


# Largest relative error in the 2-norm, inputs being the same rounded numbers for both sides.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
