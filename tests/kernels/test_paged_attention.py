"""The paged kernel, interpreted, against plain attention on the gathered keys."""

from __future__ import annotations

import pytest
import torch
from plain_attention import TOLERANCE, assert_close, plain_attention

from kernels.paged_attention import PagedBatch, paged_attention
from kernels.tiles import Tile

CACHE_BLOCKS = 24
K_LENGTHS = [5, 100, 1, 33]


def batch_of(k_lengths: list[int], q_lengths: list[int] | None, block_size: int) -> PagedBatch:
    """Blocks in random order; each table ends in an entry that must not be read."""
    free = torch.randperm(CACHE_BLOCKS).tolist()
    tables = []
    for length in k_lengths:
        needed = -(-length // block_size)
        tables.append([*free[:needed], 10**6])
        free = free[needed:]
    return PagedBatch.build(tables, k_lengths, q_lengths, block_size=block_size, cache_blocks=CACHE_BLOCKS)


def cache_of(batch: PagedBatch, kv_heads: int, head_dim: int, dtype: torch.dtype) -> torch.Tensor:
    """A cache with NaN wherever no sequence has a token, the tail of last blocks included."""
    cache = torch.full((CACHE_BLOCKS, batch.block_size, kv_heads, head_dim), torch.nan, dtype=dtype)
    for table, length in zip(batch.block_tables.tolist(), batch.k_lengths.tolist(), strict=True):
        for token in range(length):
            cache[table[token // batch.block_size], token % batch.block_size] = torch.randn(kv_heads, head_dim).to(
                dtype
            )
    return cache


def plain_paged(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, batch: PagedBatch, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    outputs, rows = [], []
    offsets = batch.q_offsets.tolist()
    for index, (table, length) in enumerate(zip(batch.block_tables.tolist(), batch.k_lengths.tolist(), strict=True)):
        tokens = [(table[t // batch.block_size], t % batch.block_size) for t in range(length)]
        k, v = (
            torch.stack([cache[block, slot] for block, slot in tokens]).double() if tokens else cache[0, :0].double()
            for cache in (k_cache, v_cache)
        )  # [tokens, kv_heads, head_dim]
        queries = q[offsets[index] : offsets[index + 1]].double().transpose(0, 1)
        o, lse = plain_attention(queries, k.transpose(0, 1), v.transpose(0, 1), True, scale)
        outputs.append(o.transpose(0, 1))
        rows.append(lse)
    return torch.cat(outputs), torch.cat(rows, 1)


def kernel(*arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
    from kernels.paged_attention import triton

    return triton.forward(*arguments)


@pytest.mark.parametrize(("splits", "block_size", "tile"), [(1, 16, Tile(16, 32, 4, 2)), (3, 32, Tile(16, 16, 4, 2))])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.usefixtures("interpreter")
def test_decode(dtype: torch.dtype, splits: int, block_size: int, tile: Tile) -> None:
    batch = batch_of(K_LENGTHS, None, block_size)
    q = torch.randn(4, 6, 40).to(dtype)
    k, v = (cache_of(batch, 2, 40, dtype) for _ in range(2))
    o, lse = kernel(q, k, v, None, None, batch, 0.2, tile, splits)
    expected, rows = plain_paged(q, k, v, batch, 0.2)
    assert_close(o, expected, TOLERANCE[dtype])
    assert_close(lse, rows, 1e-5)


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.usefixtures("interpreter")
def test_chunked_prefill_mixed_with_decode_and_an_empty_sequence(splits: int) -> None:
    batch = batch_of([5, 100, 7, 0, 30], [2, 20, 7, 0, 1], 16)
    q = torch.randn(30, 6, 32, dtype=torch.float64)
    k, v = (cache_of(batch, 2, 32, torch.float64) for _ in range(2))
    o, lse = kernel(q, k, v, None, None, batch, 0.2, Tile(16, 32, 4, 2), splits)
    expected, rows = plain_paged(q, k, v, batch, 0.2)
    assert_close(o, expected, TOLERANCE[torch.float64])
    assert_close(lse, rows, 1e-12)


@pytest.mark.parametrize(("dtype", "largest"), [(torch.int8, 127.0), (torch.float8_e4m3fn, 448.0)])
@pytest.mark.parametrize("q_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("interpreter")
def test_quantised_caches(dtype: torch.dtype, largest: float, q_dtype: torch.dtype) -> None:
    batch = batch_of(K_LENGTHS, None, 16)
    q = torch.randn(4, 4, 32).to(q_dtype)
    caches, scales, exact = [], [], []
    for _ in range(2):
        values = cache_of(batch, 2, 32, torch.float32).nan_to_num()
        scale = values.abs().amax(-1).clamp(min=1e-6) / largest  # [blocks, block_size, kv_heads]
        quantised = (
            (values / scale[..., None]).round().to(dtype)
            if dtype == torch.int8
            else (values / scale[..., None]).to(dtype)
        )
        caches.append(quantised)
        scales.append(scale)
        exact.append(quantised.double() * scale.double()[..., None])
    expected, rows = plain_paged(q, *exact, batch, 0.2)
    for splits in (1, 2):
        o, lse = kernel(q, *caches, *scales, batch, 0.2, Tile(16, 32, 4, 2), splits)
        assert_close(o, expected, TOLERANCE[q_dtype])
        assert_close(lse, rows, 1e-5)


@pytest.mark.usefixtures("interpreter")
def test_one_scale_for_a_head_is_an_expand() -> None:
    batch = batch_of(K_LENGTHS, None, 16)
    q = torch.randn(4, 4, 32)
    cache = torch.randint(-127, 128, (CACHE_BLOCKS, 16, 2, 32), dtype=torch.int8)
    scale = torch.tensor([0.01, 0.02])
    expanded = scale.expand(CACHE_BLOCKS, 16, 2)
    exact = cache.double() * scale.double()[:, None]
    expected, _ = plain_paged(q, exact, exact, batch, 0.25)
    o = paged_attention(q, cache, cache, batch, k_scales=expanded, v_scales=expanded, scale=0.25)
    assert_close(o, expected, TOLERANCE[torch.float32])


def test_the_reference_agrees_with_plain_attention() -> None:
    torch.manual_seed(0)
    batch = batch_of([5, 100, 7, 0], [2, 20, 7, 0], 16)
    q = torch.randn(29, 6, 32, dtype=torch.float64)
    k, v = (cache_of(batch, 2, 32, torch.float64) for _ in range(2))
    o, lse = paged_attention(q, k, v, batch, return_lse=True)
    expected, rows = plain_paged(q, k, v, batch, 32**-0.5)
    assert_close(o, expected, 1e-12)
    assert_close(lse, rows, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [16, 24, 64, 80, 128, 256])
@pytest.mark.parametrize("block_size", [16, 64, 128])
@pytest.mark.parametrize("q_lengths", [None, [5, 40, 1, 33]])
@pytest.mark.usefixtures("interpreter")
def test_the_tables_tiles(head_dim: int, block_size: int, q_lengths: list[int] | None) -> None:
    batch = batch_of([5, 300, 1, 33], q_lengths, block_size)
    q = torch.randn(batch.q_tokens, 8, head_dim, dtype=torch.float16)
    k, v = (cache_of(batch, 2, head_dim, torch.float16) for _ in range(2))
    o, _ = kernel(q, k, v, None, None, batch, head_dim**-0.5)
    expected, _ = plain_paged(q, k, v, batch, head_dim**-0.5)
    assert_close(o, expected, TOLERANCE[torch.float16])
