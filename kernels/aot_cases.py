"""The launches that prove a tile: each op as it is really called, on meta tensors, for `kernels.aot` to compile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from kernels.aot import Launch, record
from kernels.flash_attention import triton as flash
from kernels.flash_attention_jvp import triton as jvp
from kernels.flash_attention_jvp import triton_backward as jvp_backward
from kernels.paged_attention import PagedBatch
from kernels.paged_attention import triton as paged
from kernels.ragged import Ragged, Spec
from kernels.tiles import Tile, table, tile_key

OPS = (
    "flash_attention",
    "flash_attention_jvp",
    "flash_attention_jvp_backward_q",
    "flash_attention_jvp_backward_kv",
    "paged_attention_decode",
    "paged_attention_prefill",
)
# Decode's query tile has 16 rows, too few for wgmma (64); products in IEEE float32 run on no tensor core at all.
WITHOUT_WGMMA = ("paged_attention_decode",)
BLOCK_SIZE, TOKENS = 16, 4096


@dataclass(frozen=True)
class Size:
    """How large a call is. Compilation needs but grouped heads; measurement needs enough to fill a GPU."""

    batch: int
    heads: int
    kv_heads: int
    prefill_tokens: int


COMPILED, MEASURED, MEASURED_DECODE = Size(2, 8, 2, 256), Size(8, 8, 8, 1024), Size(64, 32, 8, 1)


@dataclass(frozen=True)
class Variant:
    """How an op is called: the mask and layout, or the cache's type, decide what is compiled."""

    causal: bool = False
    ragged: bool = False
    cache: torch.dtype | None = None  # of a quantised paged cache
    tokens: int = TOKENS


DENSE, RAGGED = Variant(), Variant(causal=True, ragged=True)
# Triton turns every size and stride of 1 into a constant: a call with one token is other code than one with many.
ONE_TOKEN = Variant(causal=True, tokens=1)


def variants(op: str, architecture: int) -> tuple[Variant, ...]:
    """The plainest and the most demanding calls of an op."""
    if not op.startswith("paged"):
        return DENSE, RAGGED
    quantised = [torch.int8] if architecture < 90 else [torch.int8, torch.float8_e4m3fn]
    return DENSE, *(Variant(cache=dtype) for dtype in quantised)


def may_spill(op: str, head_dim: int, bits: int, architecture: int, variant: Variant = DENSE) -> bool:
    """The known exceptions to "nothing spills", each slower but right.

    Float32 tangents and gradients, which are for checking and not for speed: without tensor cores every operand of a
    product sits in registers. Gradients of heads of 256 before Hopper, whose matrix unit also reads from registers. And
    on Hopper calls of a single token with heads of 256: tiles are chosen for many tokens, and there is little to do.
    """
    tangent = op.startswith("flash_attention_jvp")
    one_token = architecture >= 90 and head_dim == 256 and variant.tokens == 1
    return (bits == 32 and tangent) or (architecture < 90 and head_dim == 256 and "backward" in op) or one_token


def must_use_wgmma(op: str, launch: Launch, dtype: torch.dtype, architecture: int) -> bool:
    own = launch.kernel.fn.__name__ != "merge_kernel"
    return own and architecture >= 90 and dtype.itemsize == 2 and op not in WITHOUT_WGMMA


def launches(
    op: str, head_dim: int, dtype: torch.dtype, variant: Variant, tile: Tile, architecture: int
) -> list[Launch]:
    """What one call of the op would launch with this tile; of a backward pass, only its own side's kernels."""
    recorded = record(runner(op, head_dim, dtype, tile, architecture, torch.device("meta"), variant))
    if "backward" not in op:
        return recorded
    own = "query_kernel" if op.endswith("_q") else "key_kernel"
    return [launch for launch in recorded if launch.kernel.fn.__name__ == own]


def runner(
    op: str,
    head_dim: int,
    dtype: torch.dtype,
    tile: Tile,
    architecture: int,
    device: torch.device,
    variant: Variant = DENSE,
) -> Callable[[], object]:
    """One call of the op with this tile: recorded on the meta device, measured on a GPU."""
    if op.startswith("paged"):
        return _paged(op, head_dim, dtype, variant, tile, architecture, device)
    q, k, rows, spec = _operands(head_dim, dtype, variant, device)
    if op == "flash_attention":
        return lambda: flash.forward(q, k, k, spec, tile, architecture)
    if op == "flash_attention_jvp":
        return lambda: jvp.forward(q, k, k, q, k, k, spec, tile, architecture)
    # Both sides run; the other side has its own tile from the table, the same whatever the candidate.
    other_op = "flash_attention_jvp_backward_" + ("kv" if op.endswith("_q") else "q")
    other = table(architecture).get(tile_key(other_op, head_dim, dtype.itemsize * 8), Tile(16, 16, 4, 1))
    tiles = (tile, other) if op.endswith("_q") else (other, tile)
    return lambda: jvp_backward.backward(
        q, k, k, q, k, k, q, q, rows, rows, q, q, rows, rows, spec, *tiles, architecture
    )


def _operands(
    head_dim: int, dtype: torch.dtype, variant: Variant, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Spec]:
    """q, k (v has its shape), an lse, and the spec."""
    size, tokens = COMPILED if device.type == "meta" else MEASURED, variant.tokens
    ragged = None
    shapes = [(size.batch, heads, tokens, head_dim) for heads in (size.heads, size.kv_heads)]
    rows = shapes[0][:-1]
    if variant.ragged:
        shapes = [(size.batch * tokens, heads, head_dim) for heads in (size.heads, size.kv_heads)]
        rows = (size.heads, size.batch * tokens)
        ragged = Ragged.from_lengths([tokens] * size.batch, device=device)
    q, k = (_random(shape, device).to(dtype) for shape in shapes)
    return q, k, _random(rows, device), Spec(variant.causal, head_dim**-0.5, ragged)


def _paged(
    op: str,
    head_dim: int,
    dtype: torch.dtype,
    variant: Variant,
    tile: Tile,
    architecture: int,
    device: torch.device,
) -> Callable[[], object]:
    decode = op == "paged_attention_decode"
    size = COMPILED if device.type == "meta" else MEASURED_DECODE if decode else MEASURED
    q_tokens = min(variant.tokens, 1 if decode else size.prefill_tokens)
    splits = 4 if decode and size is COMPILED else 1  # compile the merge too; a measured batch fills the GPU
    blocks = -(-variant.tokens // BLOCK_SIZE)
    batch = PagedBatch.build(
        torch.randperm(size.batch * blocks).view(size.batch, blocks).tolist(),
        [variant.tokens] * size.batch,
        [q_tokens] * size.batch,
        block_size=BLOCK_SIZE,
        cache_blocks=size.batch * blocks,
        device=device,
    )
    q = _random((size.batch * q_tokens, size.heads, head_dim), device).to(dtype)
    shape = (size.batch * blocks, BLOCK_SIZE, size.kv_heads, head_dim)
    k, v = (_random(shape, device).to(variant.cache or dtype) for _ in range(2))
    scales = _random(shape[:3], device) if variant.cache else None
    return lambda: paged.forward(q, k, v, scales, scales, batch, head_dim**-0.5, tile, splits, architecture)


def _random(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Random numbers: zeros draw less power on a GPU, and flatter it."""
    return torch.empty(shape, device=device) if device.type == "meta" else torch.randn(shape, device=device)
