"""Paged attention as a torch op."""

from __future__ import annotations

import torch

from kernels.checks import check_head_dim, check_scale, check_tensor, require
from kernels.paged_attention import reference
from kernels.paged_attention.batch import PagedBatch
from kernels.runtime import capability, runs_triton

QUANTISED_DTYPES = (torch.int8, torch.float8_e4m3fn)
FP8_CAPABILITY = 89


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: PagedBatch,
    *,
    k_scales: torch.Tensor | None = None,
    v_scales: torch.Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention of each sequence's newest tokens over its keys in a paged cache: decode, chunked prefill, or both.

    q [tokens, heads, head_dim], the sequences of `batch` packed; k_cache and v_cache [cache_blocks, block_size,
    kv_heads, head_dim], heads a multiple of kv_heads. The queries are a sequence's last tokens (their keys are in the
    cache already) and the mask is causal: the last sees every key. head_dim: a multiple of 8 in 16..256; last strides
    1.

    q is float16, bfloat16 or float32 (float64 too on a CPU). The caches have q's dtype, or int8 or float8_e4m3fn with
    `k_scales` and `v_scales` [cache_blocks, block_size, kv_heads] float32: a value is its entry times its token's
    scale. One scale for a head, or for all, is an `expand` of it. Long contexts are split over programs and merged.

    o is like q and contiguous; with `return_lse`, (o, lse [heads, tokens] float32). ValueError names the argument
    that does not fit, before any launch. No gradients.
    """
    scale = _check(q, k_cache, v_cache, batch, k_scales, v_scales, scale)
    flat = (batch.block_tables, batch.k_lengths, batch.q_offsets, batch.max_q_tokens, batch.max_k_tokens, scale)
    if torch.compiler.is_compiling():
        o, lse = paged_attention_op(q, k_cache, v_cache, k_scales, v_scales, *flat)
    else:
        o, lse = forward(q, k_cache, v_cache, k_scales, v_scales, batch, scale)
    return (o, lse) if return_lse else o


def forward(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k_scales: torch.Tensor | None,
    v_scales: torch.Tensor | None,
    batch: PagedBatch,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel where it runs, else the reference."""
    with torch.no_grad():
        if runs_triton(q):
            from kernels.paged_attention import triton

            return triton.forward(q, k_cache, v_cache, k_scales, v_scales, batch, scale)
        return reference.forward(q, k_cache, v_cache, k_scales, v_scales, batch, scale)


def _check(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: PagedBatch,
    k_scales: torch.Tensor | None,
    v_scales: torch.Tensor | None,
    scale: float | None,
) -> float:
    check_tensor("q", q, q, 3)
    heads, head_dim = q.shape[1:]
    check_head_dim("q", head_dim)
    require(q.shape[0] == batch.q_tokens, "q", f"{batch.q_tokens} tokens as in batch", q.shape[0])
    require(batch.k_lengths.device == q.device, "batch", f"device {q.device}", batch.k_lengths.device)
    for argument, cache, scales in (("k_cache", k_cache, k_scales), ("v_cache", v_cache, v_scales)):
        _check_cache(argument, cache, scales, q, batch)
    require(
        v_cache.shape == k_cache.shape, "v_cache", f"the shape of k_cache {tuple(k_cache.shape)}", tuple(v_cache.shape)
    )
    require(v_cache.dtype == k_cache.dtype, "v_cache", f"the dtype of k_cache {k_cache.dtype}", v_cache.dtype)
    kv_heads = k_cache.shape[2]
    require(kv_heads > 0 and heads % kv_heads == 0, "k_cache", f"heads that divide q's {heads}", kv_heads)
    return check_scale(scale, head_dim)


def _check_cache(
    argument: str, cache: torch.Tensor, scales: torch.Tensor | None, q: torch.Tensor, batch: PagedBatch
) -> None:
    quantised = cache.dtype in QUANTISED_DTYPES
    if not quantised:
        check_tensor(argument, cache, q, 4)
    require(cache.ndim == 4, argument, "4 dimensions", tuple(cache.shape))
    require(cache.device == q.device, argument, f"the device of q, {q.device}", cache.device)
    require(cache.stride(-1) == 1, argument, "a last dimension of stride 1", cache.stride(-1))
    expected = (batch.cache_blocks, batch.block_size)
    require(tuple(cache.shape[:2]) == expected, argument, f"[{expected[0]}, {expected[1]}, ...]", tuple(cache.shape))
    require(cache.shape[3] == q.shape[2], argument, f"the head dim of q, {q.shape[2]}", cache.shape[3])
    if cache.dtype == torch.float8_e4m3fn and q.is_cuda:
        found = capability(q.device)
        require(found >= FP8_CAPABILITY, argument, f"int8: float8 needs compute capability {FP8_CAPABILITY}", found)
    name = argument[0] + "_scales"
    if not quantised:
        require(scales is None, name, f"none for a cache of {cache.dtype}", "a tensor")
        return
    require(scales is not None, name, f"a tensor for a cache of {cache.dtype}", None)
    assert scales is not None
    require(scales.shape == cache.shape[:3], name, str(tuple(cache.shape[:3])), tuple(scales.shape))
    require(scales.dtype == torch.float32, name, "torch.float32", scales.dtype)
    require(scales.device == q.device, name, f"the device of q, {q.device}", scales.device)


@torch.library.custom_op("headway::paged_attention", mutates_args=())
def paged_attention_op(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k_scales: torch.Tensor | None,
    v_scales: torch.Tensor | None,
    block_tables: torch.Tensor,
    k_lengths: torch.Tensor,
    q_offsets: torch.Tensor,
    max_q_tokens: int,
    max_k_tokens: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    cache_blocks, block_size = k_cache.shape[:2]
    batch = PagedBatch(
        block_tables, k_lengths, q_offsets, block_size, cache_blocks, q.shape[0], max_q_tokens, max_k_tokens
    )
    return forward(q, k_cache, v_cache, k_scales, v_scales, batch, scale)


@paged_attention_op.register_fake
def _(q, k_cache, v_cache, *rest):  # type: ignore[no-untyped-def]
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=lse_dtype)
