"""What the kernels are measured against, each as one call over the same tensors; None where it is not to be had."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from kernels.flash_attention import flash_attention
from kernels.flash_attention_jvp import flash_attention_jvp

Tensors = tuple[torch.Tensor, ...]
Call = Callable[[], Any]


def math_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """PyTorch's math path, the only one of its own that has a forward-mode derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(q, k, v, is_causal=causal)


def math_jvp(primals: Tensors, tangents: Tensors, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.func.jvp(lambda q, k, v: math_attention(q, k, v, causal), primals, tangents)


def jvp_forward(primals: Tensors, tangents: Tensors, causal: bool) -> dict[str, Call | None]:
    """(o, do) by each contender. "math float32" upcasts first: the baseline of cloud-inference-platform's table."""

    def in_float32() -> Any:
        wide = [tuple(each.float() for each in group) for group in (primals, tangents)]
        return math_jvp(*wide, causal)

    return {
        "headway": lambda: flash_attention_jvp(*primals, *tangents, causal=causal)[:2],
        "headway, only q has a tangent": lambda: flash_attention_jvp(*primals, tangents[0], causal=causal)[:2],
        "math": lambda: math_jvp(primals, tangents, causal),
        "math float32": in_float32,
        "jvp_flash_attention": _amorehead(primals, tangents, causal),
    }


def _amorehead(primals: Tensors, tangents: Tensors, causal: bool) -> Call | None:
    try:
        from jvp_flash_attention.jvp_attention import JVPAttn
    except ImportError:
        return None

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return JVPAttn.fwd_dual(q, k, v, causal=causal)

    return lambda: torch.func.jvp(attend, primals, tangents)


def jvp_backward(
    primals: Tensors, tangents: Tensors, causal: bool, gradients: Tensors
) -> dict[str, Callable[[], Call]]:
    """For each contender, a function that runs the forward and returns the call to be timed: all six gradients."""

    def ours() -> Call:
        leaves = [each.detach().requires_grad_() for each in (*primals, *tangents)]
        results = flash_attention_jvp(*leaves, causal=causal)[:2]
        return lambda: torch.autograd.grad(results, leaves, gradients, retain_graph=True)

    def math() -> Call:
        leaves = [each.detach().requires_grad_() for each in (*primals, *tangents)]
        results = math_jvp(tuple(leaves[:3]), tuple(leaves[3:]), causal)
        return lambda: torch.autograd.grad(results, leaves, gradients, retain_graph=True)

    return {"headway": ours, "math": math}


def plain_forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> dict[str, Call | None]:
    def backend(which: SDPBackend) -> Call:
        def call() -> torch.Tensor:
            with sdpa_kernel(which):
                return scaled_dot_product_attention(q, k, v, is_causal=causal)

        return call

    return {
        "headway": lambda: flash_attention(q, k, v, causal=causal),
        "SDPA flash": backend(SDPBackend.FLASH_ATTENTION),
        "SDPA cuDNN": backend(SDPBackend.CUDNN_ATTENTION),
        "FlexAttention": _flex(q, k, v, causal),
    }


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> Call:
    from torch.nn.attention.flex_attention import create_block_mask

    mask = None
    if causal:
        tokens = q.shape[2]
        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, tokens, tokens, device=q.device)
    return lambda: _compiled_flex()(q, k, v, block_mask=mask)
