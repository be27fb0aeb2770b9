"""Attention's tangent and its gradients in plain torch: the truth for the kernels, and what runs on a CPU.

The formulas are the README's, on whole [q_tokens, k_tokens] matrices. Tests hold them to `torch.func.jvp` and autograd.
"""

from __future__ import annotations

import torch

from kernels.flash_attention.reference import group_heads, masked_scores, softmax_and_lse, working_dtype
from kernels.ragged import Spec

Optional = torch.Tensor | None


def dense_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dq: torch.Tensor,
    dk: torch.Tensor,
    dv: torch.Tensor,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shapes as `flash_attention.reference.dense_forward`; returns o, its tangent, lse and its tangent."""
    dtype, heads = q.dtype, q.shape[-3]
    q, dq = (each.to(working_dtype(q)) for each in (q, dq))
    k, v, dk, dv = (group_heads(each.to(q.dtype), heads) for each in (k, v, dk, dv))
    p, lse = softmax_and_lse(masked_scores(q, k, causal, scale))
    ds = (dq @ k.mT + q @ dk.mT) * scale
    h = p * ds
    r = h.sum(-1)
    o = p @ v
    do = h @ v - r[..., None] * o + p @ dv
    return o.to(dtype), do.to(dtype), lse, r


def dense_backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dq: torch.Tensor,
    dk: torch.Tensor,
    dv: torch.Tensor,
    grad_o: torch.Tensor,
    grad_do: torch.Tensor,
    grad_lse: torch.Tensor,
    grad_dlse: torch.Tensor,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients with respect to q, k, v, dq, dk, dv, given those of o, do, lse and dlse."""
    dtype, heads, kv_heads = q.dtype, q.shape[-3], k.shape[-3]
    q, dq, a, b = (each.to(working_dtype(q)) for each in (q, dq, grad_o, grad_do))
    k, v, dk, dv = (group_heads(each.to(q.dtype), heads) for each in (k, v, dk, dv))
    p, _ = softmax_and_lse(masked_scores(q, k, causal, scale))
    ds = (dq @ k.mT + q @ dk.mT) * scale
    r = (p * ds).sum(-1, keepdim=True)
    o = p @ v
    do = (p * (ds - r)) @ v + p @ dv
    omega = (b * o).sum(-1, keepdim=True) - grad_dlse[..., None]
    delta = (a * o).sum(-1, keepdim=True) + (b * do).sum(-1, keepdim=True) - grad_lse[..., None]
    e = b @ v.mT - omega
    grad_ds = p * e * scale
    grad_s = p * (a @ v.mT + b @ dv.mT - delta + (ds - r) * e) * scale
    gradients = (
        grad_s @ k + grad_ds @ dk,
        _ungroup(grad_s.mT @ q + grad_ds.mT @ dq, kv_heads),
        _ungroup(p.mT @ a + (p * (ds - r)).mT @ b, kv_heads),
        grad_ds @ k,
        _ungroup(grad_ds.mT @ q, kv_heads),
        _ungroup(p.mT @ b, kv_heads),
    )
    return tuple(each.to(dtype) for each in gradients)  # type: ignore[return-value]


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dq: Optional, dk: Optional, dv: Optional, spec: Spec
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `flash_attention_jvp`, tangents that are None standing for zero."""
    operands = (q, k, v, *_or_zeros((q, k, v), (dq, dk, dv)))
    if spec.ragged is None:
        return dense_forward(*operands, spec.causal, spec.scale)
    o, do = torch.empty_like(q), torch.empty_like(q)
    lse, dlse = (torch.empty(q.shape[1], q.shape[0], dtype=working_dtype(q), device=q.device) for _ in range(2))
    for queries, keys in spec.ragged.spans():
        each = [_heads_first(operand, span) for operand, span in zip(operands, 2 * (queries, keys, keys), strict=True)]
        tokens, tangents, lse[:, queries], dlse[:, queries] = dense_forward(*each, spec.causal, spec.scale)
        o[queries], do[queries] = tokens.transpose(0, 1), tangents.transpose(0, 1)
    return o, do, lse, dlse


def backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dq: Optional,
    dk: Optional,
    dv: Optional,
    grad_o: torch.Tensor,
    grad_do: Optional,
    grad_lse: Optional,
    grad_dlse: Optional,
    spec: Spec,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Six gradients in the shapes of q, k, v, q, k, v; what is None counts as zero."""
    operands = (q, k, v, *_or_zeros((q, k, v), (dq, dk, dv)))
    rows = q.shape[:-1] if spec.ragged is None else (q.shape[1], q.shape[0])
    zero_rows = torch.zeros(rows, dtype=working_dtype(q), device=q.device)
    grad_do = torch.zeros_like(grad_o) if grad_do is None else grad_do
    grad_lse, grad_dlse = (zero_rows if each is None else each for each in (grad_lse, grad_dlse))
    if spec.ragged is None:
        return dense_backward(*operands, grad_o, grad_do, grad_lse, grad_dlse, spec.causal, spec.scale)
    gradients = tuple(torch.zeros_like(operand) for operand in operands)
    for queries, keys in spec.ragged.spans():
        spans = 2 * (queries, keys, keys)
        each = [
            _heads_first(operand, span)
            for operand, span in zip((*operands, grad_o, grad_do), (*spans, queries, queries), strict=True)
        ]
        parts = dense_backward(*each, grad_lse[:, queries], grad_dlse[:, queries], spec.causal, spec.scale)
        for gradient, part, span in zip(gradients, parts, spans, strict=True):
            gradient[span] = part.transpose(0, 1)
    return gradients  # type: ignore[return-value]


def _or_zeros(primals: tuple[torch.Tensor, ...], tangents: tuple[Optional, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.zeros_like(p) if t is None else t for p, t in zip(primals, tangents, strict=True))


def _heads_first(packed: torch.Tensor, span: slice) -> torch.Tensor:
    return packed[span].transpose(0, 1)  # [heads, tokens, head_dim]


def _ungroup(gradient: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Sum over the query heads that share a key head.  # [..., kv_heads, tokens, head_dim]"""
    return gradient.unflatten(-3, (kv_heads, -1)).sum(-3)
