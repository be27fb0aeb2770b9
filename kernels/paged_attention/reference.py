"""Paged attention in plain torch: gather each sequence's keys, then attend as `flash_attention` does."""

from __future__ import annotations

import torch

from kernels.flash_attention.reference import dense_forward, working_dtype
from kernels.paged_attention.batch import PagedBatch


def forward(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k_scales: torch.Tensor | None,
    v_scales: torch.Tensor | None,
    batch: PagedBatch,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `paged_attention`: (o like q, lse [heads, q_tokens])."""
    o = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.full((q.shape[1], q.shape[0]), -torch.inf, dtype=working_dtype(q), device=q.device)
    offsets = batch.q_offsets.tolist()
    for sequence, k_length in enumerate(batch.k_lengths.tolist()):
        queries = slice(offsets[sequence], offsets[sequence + 1])
        blocks = batch.block_tables[sequence, : -(-k_length // batch.block_size)].long()
        k = gather(k_cache, k_scales, blocks, k_length, working_dtype(q))
        v = gather(v_cache, v_scales, blocks, k_length, working_dtype(q))
        tokens, lse[:, queries] = dense_forward(q[queries].transpose(0, 1), k, v, causal=True, scale=scale)
        o[queries] = tokens.transpose(0, 1)
    return o, lse


def gather(
    cache: torch.Tensor, scales: torch.Tensor | None, blocks: torch.Tensor, tokens: int, dtype: torch.dtype
) -> torch.Tensor:
    """One sequence's keys (or values), dequantised.  # [kv_heads, tokens, head_dim]"""
    values = cache[blocks].to(dtype)  # [blocks, block_size, kv_heads, head_dim]
    if scales is not None:
        values = values * scales[blocks].to(dtype)[..., None]
    return values.flatten(0, 1)[:tokens].transpose(0, 1)
