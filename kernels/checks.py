"""What every attention op demands of its tensors, checked before any launch. Each error names the argument."""

from __future__ import annotations

import math

import torch

from kernels.ragged import Ragged, Spec

KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
HEAD_DIM_MIN, HEAD_DIM_MAX, HEAD_DIM_STEP = 16, 256, 8


def require(condition: bool, argument: str, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"{argument}: expected {expected}, got {got}")


def check_tensor(argument: str, tensor: torch.Tensor, like: torch.Tensor, ndim: int) -> None:
    """Rank, floating dtype, device and unit stride of one operand; `like` is q."""
    require(tensor.ndim == ndim, argument, f"{ndim} dimensions", tuple(tensor.shape))
    allowed = KERNEL_DTYPES if tensor.is_cuda else (*KERNEL_DTYPES, torch.float64)
    require(tensor.dtype in allowed, argument, f"one of {[str(d) for d in allowed]}", tensor.dtype)
    require(tensor.dtype == like.dtype, argument, f"the dtype of q, {like.dtype}", tensor.dtype)
    require(tensor.device == like.device, argument, f"the device of q, {like.device}", tensor.device)
    require(
        tensor.stride(-1) == 1 or tensor.shape[-1] == 1, argument, "a last dimension of stride 1", tensor.stride(-1)
    )


def check_head_dim(argument: str, head_dim: int) -> None:
    fits = HEAD_DIM_MIN <= head_dim <= HEAD_DIM_MAX and head_dim % HEAD_DIM_STEP == 0
    require(fits, argument, f"a head dim of {HEAD_DIM_MIN}..{HEAD_DIM_MAX}, a multiple of {HEAD_DIM_STEP}", head_dim)


def check_scale(scale: float | None, head_dim: int) -> float:
    """The scale to use: 1 / sqrt(head_dim) unless given."""
    if scale is None:
        return 1.0 / math.sqrt(head_dim)
    require(math.isfinite(scale), "scale", "a finite number", scale)
    return float(scale)


def check_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float | None, ragged: Ragged | None
) -> Spec:
    """Check q, k and v, shaped as `flash_attention` states, and return the call's spec."""
    ndim = 4 if ragged is None else 3
    for argument, tensor in (("q", q), ("k", k), ("v", v)):
        check_tensor(argument, tensor, q, ndim)
    head_dim = q.shape[-1]
    check_head_dim("q", head_dim)
    require(k.shape[-1] == head_dim, "k", f"the head dim of q, {head_dim}", k.shape[-1])
    require(v.shape == k.shape, "v", f"the shape of k, {tuple(k.shape)}", tuple(v.shape))
    require(q.shape[1] > 0 and k.shape[1] > 0, "k", "at least one head", tuple(k.shape))
    require(q.shape[1] % k.shape[1] == 0, "k", f"a number of heads that divides q's {q.shape[1]}", k.shape[1])
    if ragged is None:
        require(k.shape[0] == q.shape[0], "k", f"the batch of q, {q.shape[0]}", k.shape[0])
    else:
        require(ragged.q_offsets.device == q.device, "ragged", f"device {q.device}", ragged.q_offsets.device)
        require(q.shape[0] == ragged.total_q_tokens, "q", f"{ragged.total_q_tokens} tokens as in ragged", q.shape[0])
        require(k.shape[0] == ragged.total_k_tokens, "k", f"{ragged.total_k_tokens} tokens as in ragged", k.shape[0])
    return Spec(causal=causal, scale=check_scale(scale, head_dim), ragged=ragged)


def check_tangent(argument: str, tangent: torch.Tensor | None, primal: torch.Tensor) -> None:
    """A tangent has its primal's shape, dtype and device; None stands for zero."""
    if tangent is None:
        return
    require(tangent.shape == primal.shape, argument, f"its primal's shape {tuple(primal.shape)}", tuple(tangent.shape))
    check_tensor(argument, tangent, primal, primal.ndim)
