"""The tangent of attention as torch ops: custom ops for torch.compile, gradients for eager and torch.func."""

from __future__ import annotations

from typing import Any

import torch

from kernels.checks import check_attention, check_tangent
from kernels.flash_attention_jvp import reference
from kernels.ragged import Ragged, Spec
from kernels.runtime import runs_triton

Optional = torch.Tensor | None


def flash_attention_jvp(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dq: Optional = None,
    dk: Optional = None,
    dv: Optional = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    ragged: Ragged | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention and its directional derivative along (dq, dk, dv), in one pass: (o, do, lse, dlse).

    Shapes, dtypes, masks and ragged batches as `flash_attention`; a tangent has its primal's shape, dtype and device,
    and None stands for zero (without dk and dv a third of the products is left out). `do` is like q; `dlse` is like
    `lse`, float32. Gradients flow to q, k, v and every tangent given, through all four results, without a q_tokens x
    k_tokens matrix on a GPU. Gradients of gradients are not offered. ValueError names the argument that does not fit.
    """
    spec = check_attention(q, k, v, causal, scale, ragged)
    for argument, tangent, primal in (("dq", dq, q), ("dk", dk, k), ("dv", dv, v)):
        check_tangent(argument, tangent, primal)
    return attend(q, k, v, dq, dk, dv, spec)


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dq: Optional, dk: Optional, dv: Optional, spec: Spec
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`flash_attention_jvp` after its checks: the custom op where torch.compile traces, else the autograd function."""
    if torch.compiler.is_compiling():
        return attention_jvp_op(q, k, v, dq, dk, dv, *flatten(spec))
    return AttentionJvp.apply(q, k, v, dq, dk, dv, spec)


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dq: Optional, dk: Optional, dv: Optional, spec: Spec
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The kernel where it runs, else the reference."""
    if runs_triton(q):
        from kernels.flash_attention_jvp import triton

        return triton.forward(q, k, v, dq, dk, dv, spec)
    return reference.forward(q, k, v, dq, dk, dv, spec)


def backward(saved: tuple[Optional, ...], gradients: tuple[Optional, ...], spec: Spec) -> tuple[Optional, ...]:
    """Gradients of q, k, v, dq, dk, dv from what the forward saved and the gradients of o, do, lse, dlse."""
    q, k, v, dq, dk, dv, o, do, lse, dlse = saved
    grad_o, grad_do, grad_lse, grad_dlse = gradients
    if runs_triton(q):
        from kernels.flash_attention_jvp import triton_backward

        return triton_backward.backward(
            q, k, v, dq, dk, dv, o, do, lse, dlse, grad_o, grad_do, grad_lse, grad_dlse, spec
        )
    found = reference.backward(q, k, v, dq, dk, dv, grad_o, grad_do, grad_lse, grad_dlse, spec)
    return tuple(
        None if like is None else gradient for like, gradient in zip((q, k, v, dq, dk, dv), found, strict=True)
    )


class AttentionJvp(torch.autograd.Function):
    """Eager, and under torch.func's grad: the forward kernel, with the backward kernels as its derivative."""

    @staticmethod
    def forward(q: Any, k: Any, v: Any, dq: Any, dk: Any, dv: Any, spec: Spec) -> Any:
        return forward(q, k, v, dq, dk, dv, spec)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *operands, ctx.spec = inputs
        ctx.save_for_backward(*operands, *output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return *backward(ctx.saved_tensors, gradients, ctx.spec), None


# ---- custom ops: what torch.compile traces, with every argument a tensor or a number ----

Flat = tuple[Optional, Optional, int, int, bool, float]


def flatten(spec: Spec) -> Flat:
    if spec.ragged is None:
        return None, None, 0, 0, spec.causal, spec.scale
    ragged = spec.ragged
    return (
        ragged.q_offsets, ragged.k_offsets, ragged.max_q_tokens, ragged.max_k_tokens, spec.causal, spec.scale
    )  # fmt: skip


def unflatten(
    q: torch.Tensor,
    k: torch.Tensor,
    q_offsets: Optional,
    k_offsets: Optional,
    max_q_tokens: int,
    max_k_tokens: int,
    causal: bool,
    scale: float,
) -> Spec:
    if q_offsets is None or k_offsets is None:
        return Spec(causal, scale, None)
    return Spec(causal, scale, Ragged(q_offsets, k_offsets, max_q_tokens, max_k_tokens, q.shape[0], k.shape[0]))


def rows_like(q: torch.Tensor, q_offsets: Optional) -> torch.Tensor:
    """An empty lse: [batch, heads, tokens], or [heads, tokens] for a ragged batch."""
    shape = q.shape[:-1] if q_offsets is None else (q.shape[1], q.shape[0])
    return q.new_empty(shape, dtype=torch.float64 if q.dtype == torch.float64 else torch.float32)


@torch.library.custom_op("headway::flash_attention_jvp", mutates_args=())
def attention_jvp_op(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dq: torch.Tensor | None,
    dk: torch.Tensor | None,
    dv: torch.Tensor | None,
    q_offsets: torch.Tensor | None,
    k_offsets: torch.Tensor | None,
    max_q_tokens: int,
    max_k_tokens: int,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return forward(
        q, k, v, dq, dk, dv, unflatten(q, k, q_offsets, k_offsets, max_q_tokens, max_k_tokens, causal, scale)
    )


@attention_jvp_op.register_fake
def _(q, k, v, dq, dk, dv, q_offsets, *rest):  # type: ignore[no-untyped-def]
    o, rows = q.new_empty(q.shape), rows_like(q, q_offsets)
    return o, torch.empty_like(o), rows, torch.empty_like(rows)


@torch.library.custom_op("headway::flash_attention_jvp_backward", mutates_args=())
def attention_jvp_backward_op(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dq: torch.Tensor | None,
    dk: torch.Tensor | None,
    dv: torch.Tensor | None,
    o: torch.Tensor,
    do: torch.Tensor | None,
    lse: torch.Tensor,
    dlse: torch.Tensor | None,
    grad_o: torch.Tensor,
    grad_do: torch.Tensor | None,
    grad_lse: torch.Tensor | None,
    grad_dlse: torch.Tensor | None,
    q_offsets: torch.Tensor | None,
    k_offsets: torch.Tensor | None,
    max_q_tokens: int,
    max_k_tokens: int,
    causal: bool,
    scale: float,
) -> list[torch.Tensor]:
    spec = unflatten(q, k, q_offsets, k_offsets, max_q_tokens, max_k_tokens, causal, scale)
    saved = (q, k, v, dq, dk, dv, o, do, lse, dlse)
    found = backward(saved, (grad_o, grad_do, grad_lse, grad_dlse), spec)
    return [gradient for gradient in found if gradient is not None]


@attention_jvp_backward_op.register_fake
def _(q, k, v, dq, dk, dv, *rest):  # type: ignore[no-untyped-def]
    return [each.new_empty(each.shape) for each in (q, k, v, dq, dk, dv) if each is not None]


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    *operands, q_offsets, k_offsets, ctx.max_q, ctx.max_k, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(*operands, q_offsets, k_offsets, *output)


def _differentiate(ctx: Any, *gradients: torch.Tensor) -> Any:
    *operands, q_offsets, k_offsets, o, do, lse, dlse = ctx.saved_tensors
    flat = (q_offsets, k_offsets, ctx.max_q, ctx.max_k, ctx.causal, ctx.scale)
    found = iter(attention_jvp_backward_op(*operands, o, do, lse, dlse, *gradients, *flat))
    return *(None if each is None else next(found) for each in operands), *[None] * 6


attention_jvp_op.register_autograd(_differentiate, setup_context=_save)
