"""Attention in plain torch: the truth that the kernel is compared with, and what runs on a CPU."""

from __future__ import annotations

import torch

from kernels.ragged import Spec


def visible_keys(q_tokens: int, k_tokens: int, causal: bool, device: torch.device) -> torch.Tensor:
    """Which key each query sees, aligned to the ends of both.  # [q_tokens, k_tokens], bool"""
    seen = torch.ones(q_tokens, k_tokens, dtype=torch.bool, device=device)
    return seen.tril(k_tokens - q_tokens) if causal else seen


def working_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Half precisions are computed in float32, as the kernel's accumulators are."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def masked_scores(q: torch.Tensor, k: torch.Tensor, causal: bool, scale: float) -> torch.Tensor:
    """Scaled scores, -inf where a key is not seen.  # [..., q_tokens, k_tokens]"""
    seen = visible_keys(q.shape[-2], k.shape[-2], causal, q.device)
    return (q @ k.mT * scale).masked_fill(~seen, -torch.inf)


def softmax_and_lse(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row softmax and log-sum-exp; a row with no key has weights 0 and LSE -inf."""
    lse = scores.logsumexp(-1)  # [..., q_tokens]
    weights = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0)[..., None])
    return weights, lse


def group_heads(keys: torch.Tensor, heads: int) -> torch.Tensor:
    """Repeat each key head for the query heads that share it.  # [..., heads, tokens, head_dim]"""
    return keys.repeat_interleave(heads // keys.shape[-3], dim=-3)


def dense_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """q [..., heads, q_tokens, head_dim], k, v [..., kv_heads, k_tokens, head_dim]; o like q, and its lse."""
    wide = working_dtype(q)
    k, v = (group_heads(each.to(wide), q.shape[-3]) for each in (k, v))
    weights, lse = softmax_and_lse(masked_scores(q.to(wide), k, causal, scale))
    return (weights @ v).to(q.dtype), lse


def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: Spec) -> tuple[torch.Tensor, torch.Tensor]:
    """As `flash_attention`: dense, or sequence by sequence for a ragged batch; lse is [heads, tokens] then."""
    if spec.ragged is None:
        return dense_forward(q, k, v, spec.causal, spec.scale)
    o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[1], q.shape[0], dtype=working_dtype(q), device=q.device)
    for queries, keys in spec.ragged.spans():
        each = (q[queries].transpose(0, 1), k[keys].transpose(0, 1), v[keys].transpose(0, 1))
        tokens, lse[:, queries] = dense_forward(*each, spec.causal, spec.scale)
        o[queries] = tokens.transpose(0, 1)
    return o, lse
