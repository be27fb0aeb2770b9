"""Attention as a torch op: compiled, differentiated backward (its gradients) and forward (its tangent)."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

from kernels.checks import check_attention
from kernels.flash_attention import reference
from kernels.flash_attention_jvp import op as jvp_op
from kernels.ragged import Ragged, Spec
from kernels.runtime import runs_triton


def flash_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    ragged: Ragged | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """softmax(scale * q k^T) v without the score matrix; `(o, lse)` with `return_lse`.

    Dense: q [batch, heads, q_tokens, head_dim], k and v [batch, kv_heads, k_tokens, head_dim]. Ragged: tokens of all
    sequences packed, q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim], lengths in `ragged`. heads is
    a multiple of kv_heads; q_tokens and k_tokens may differ, and causal masks align the ends of both. head_dim: a
    multiple of 8 in 16..256. dtype: float16, bfloat16 or float32, the same for all (float64 too on a CPU); last
    stride 1.

    o is contiguous, shaped and typed like q. lse is float32, [batch, heads, q_tokens], or [heads, tokens] if ragged.
    A query that sees no key answers 0 and lse -inf. scale defaults to 1 / sqrt(head_dim).

    Differentiable once backward; forward (torch.func.jvp, dual tensors) it runs `flash_attention_jvp` in its place,
    whose results differentiate backward again. ValueError names the argument that does not fit, before any launch.
    """
    spec = check_attention(q, k, v, causal, scale, ragged)
    o, lse = _attend(q, k, v, spec)
    return (o, lse) if return_lse else o


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: Spec) -> tuple[torch.Tensor, torch.Tensor]:
    if _forward_mode():
        pairs = [forward_ad.unpack_dual(each) for each in (q, k, v)]
        if any(pair.tangent is not None for pair in pairs):
            # One pass for primal and tangent; the rule of `Attention` below would run the primal twice.
            primals, tangents = ([pair[part] for pair in pairs] for part in (0, 1))
            o, do, lse, dlse = jvp_op.attend(*primals, *_unit_strides(tangents), spec)
            return forward_ad.make_dual(o, do), forward_ad.make_dual(lse, dlse)
    if torch.compiler.is_compiling():
        return attention_op(q, k, v, *jvp_op.flatten(spec))
    return Attention.apply(q, k, v, spec)


def _forward_mode() -> bool:
    """Whether some forward-mode level is open; torch.func.jvp opens one too."""
    return forward_ad._current_level >= 0


def _unit_strides(tangents: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Autograd makes tangents with any strides, zero among them; the kernels need rows without gaps."""
    return [None if each is None else each if each.stride(-1) == 1 else each.contiguous() for each in tangents]


def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: Spec) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel where it runs, else the reference."""
    if runs_triton(q):
        from kernels.flash_attention import triton

        return triton.forward(q, k, v, spec)
    return reference.forward(q, k, v, spec)


class Attention(torch.autograd.Function):
    """Eager, and under torch.func: backward kernels without tangents, and the rule for forward mode."""

    @staticmethod
    def forward(q: Any, k: Any, v: Any, spec: Spec) -> Any:
        return forward(q, k, v, spec)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        q, k, v, ctx.spec = inputs
        ctx.save_for_backward(q, k, v, *output)
        ctx.save_for_forward(q, k, v)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_o: torch.Tensor, grad_lse: torch.Tensor) -> Any:
        q, k, v, o, lse = ctx.saved_tensors
        saved = (q, k, v, None, None, None, o, None, lse, None)
        return *jvp_op.backward(saved, (grad_o, None, grad_lse, None), ctx.spec)[:3], None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Reached where an outer level's tangents arrive inside an inner transform; else `_attend` takes one pass."""
        q, k, v = ctx.saved_tensors[:3]
        _, do, _, dlse = jvp_op.attend(q, k, v, *_unit_strides(list(tangents[:3])), ctx.spec)
        return do, dlse


@torch.library.custom_op("headway::flash_attention", mutates_args=())
def attention_op(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_offsets: torch.Tensor | None,
    k_offsets: torch.Tensor | None,
    max_q_tokens: int,
    max_k_tokens: int,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    return forward(q, k, v, jvp_op.unflatten(q, k, q_offsets, k_offsets, max_q_tokens, max_k_tokens, causal, scale))


@attention_op.register_fake
def _(q, k, v, q_offsets, k_offsets, max_q_tokens, max_k_tokens, causal, scale):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape), jvp_op.rows_like(q, q_offsets)


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    q, k, v, q_offsets, k_offsets, ctx.max_q, ctx.max_k, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, q_offsets, k_offsets, *output)


def _differentiate(ctx: Any, grad_o: torch.Tensor, grad_lse: torch.Tensor) -> Any:
    q, k, v, q_offsets, k_offsets, o, lse = ctx.saved_tensors
    flat = (q_offsets, k_offsets, ctx.max_q, ctx.max_k, ctx.causal, ctx.scale)
    gradients = jvp_op.attention_jvp_backward_op(
        q, k, v, None, None, None, o, None, lse, None, grad_o, None, grad_lse, None, *flat
    )
    return *gradients, *[None] * 6


attention_op.register_autograd(_differentiate, setup_context=_save)
