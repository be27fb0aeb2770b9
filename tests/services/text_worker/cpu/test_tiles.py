"""Attention against torch's, whatever lines and blocks its tiles have; and the same bits in any batch."""

import numpy as np
import pytest
import torch

from headway.prefix import BLOCK_TOKENS
from services.text_worker.cpu import attention, attention_amx
from services.text_worker.cpu.compiled import use_threads


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    use_threads(1)


AMX = pytest.param(
    attention_amx, marks=pytest.mark.skipif(not attention_amx.usable(64), reason="this CPU has no AMX for bf16")
)


def attend(  # type: ignore[no-untyped-def]
    qkv: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    start: int,
    heads: int,
    *,
    way=attention,
    window: int = 0,
    softcap: float = 0.0,
) -> np.ndarray:
    """Rows of one sequence, from position `start` on, over blocks in falling order."""
    head_dim = values.shape[3]
    out = np.full((len(qkv), heads * head_dim), np.nan, np.float32)
    tables = np.arange(len(keys))[::-1].astype(np.int32)[None]
    size = way.TILE_ROWS
    tiles = np.array([(0, row, min(size, len(qkv) - row), start + row) for row in range(0, len(qkv), size)], np.int32)
    scale = np.float32(head_dim**-0.5)
    way.attend(qkv, out, keys, values, tables, tiles, heads, scale, window, np.float32(softcap))
    return out


def bf16(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the nearest numbers in bf16 as fp32, their bits)."""
    nearest = torch.from_numpy(numbers).bfloat16()
    return nearest.float().numpy(), nearest.view(torch.int16).numpy().view(np.uint16)


def as_fp32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def paired(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `Pages` keeps the bits of bf16."""
    blocks, kv_heads, head_dim, tokens = keys.shape
    keys = keys.reshape(blocks, kv_heads, head_dim // 2, 2, tokens).swapaxes(3, 4)
    values = values.reshape(blocks, kv_heads, tokens // 2, 2, head_dim).swapaxes(3, 4)
    return np.ascontiguousarray(keys), np.ascontiguousarray(values)


@pytest.mark.parametrize("head_dim", [8, 16, 40, 64, 80])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 7])
def test_every_shape_of_tile_is_right_and_gives_a_row_the_same_bits(group: int, head_dim: int) -> None:
    random = np.random.default_rng(group * head_dim)
    kv_heads, blocks, tokens = 2, 11, 11 * BLOCK_TOKENS - 5
    keys = random.standard_normal((blocks, kv_heads, head_dim, BLOCK_TOKENS), np.float32)
    values = random.standard_normal((blocks, kv_heads, BLOCK_TOKENS, head_dim), np.float32)
    keys[0, :, :, -5:], values[0, :, -5:] = np.nan, np.nan  # behind the end: never written
    heads, rows = group * kv_heads, 21
    qkv = random.standard_normal((rows, (heads + 2 * kv_heads) * head_dim), np.float32)
    start = tokens - rows
    out = attend(qkv, keys, values, start, heads)

    order = np.arange(blocks)[::-1]
    k = torch.from_numpy(keys[order].transpose(1, 0, 3, 2).reshape(kv_heads, -1, head_dim)[:, :tokens])
    v = torch.from_numpy(values[order].transpose(1, 0, 2, 3).reshape(kv_heads, -1, head_dim)[:, :tokens])
    q = torch.from_numpy(qkv[:, : heads * head_dim].reshape(rows, heads, head_dim).swapaxes(0, 1).copy())
    mask = torch.arange(tokens)[None] <= torch.arange(start, tokens)[:, None]
    truth = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    np.testing.assert_allclose(out, truth.swapaxes(0, 1).reshape(rows, -1).numpy(), atol=2e-5)

    alone = [attend(qkv[row : row + 1], keys, values, start + row, heads) for row in range(rows)]
    np.testing.assert_array_equal(np.concatenate(alone), out)


@pytest.mark.parametrize("head_dim", [32, 64, 96, 40])
@pytest.mark.parametrize("group", [1, 3, 7])
@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (50, 0.0), (0, 5.0)])
@pytest.mark.parametrize("way", [attention, AMX])
def test_in_16_bits_it_is_that_of_the_rounded_numbers(  # type: ignore[no-untyped-def]
    way, window: int, softcap: float, group: int, head_dim: int
) -> None:
    if way is attention_amx and not attention_amx.usable(head_dim):
        pytest.skip("heads of this width are not whole tiles")
    random = np.random.default_rng(group * head_dim)
    kv_heads, blocks, tokens, rows = 2, 6, 6 * BLOCK_TOKENS - 5, 37
    keys, key_bits = bf16(random.standard_normal((blocks, kv_heads, head_dim, BLOCK_TOKENS), np.float32))
    values, value_bits = bf16(random.standard_normal((blocks, kv_heads, BLOCK_TOKENS, head_dim), np.float32))
    key_bits[0, :, :, -5:], value_bits[0, :, -5:] = 0x7FC0, 0x7FC0  # behind the end: never written
    keys[0, :, :, -5:], values[0, :, -5:] = 0.0, 0.0
    pages = paired(key_bits, value_bits)
    heads, start = group * kv_heads, tokens - rows
    qkv = random.standard_normal((rows, (heads + 2 * kv_heads) * head_dim), np.float32)
    out = attend(qkv, *pages, start, heads, way=way, window=window, softcap=softcap)
    truth = attend(qkv, keys, values, start, heads, window=window, softcap=softcap)
    if way is attention:
        np.testing.assert_array_equal(out, truth)
    else:  # queries and numerators are rounded too, by 2^-9 at most
        np.testing.assert_allclose(out, truth, atol=0.02)
    alone = [
        attend(qkv[row : row + 1], *pages, start + row, heads, way=way, window=window, softcap=softcap)
        for row in range(rows)
    ]
    np.testing.assert_array_equal(np.concatenate(alone), out)


def test_numbers_are_stored_as_the_nearest_in_16_bits_and_broken_ones_stay_broken() -> None:
    head_dim, tokens = 8, BLOCK_TOKENS + 3
    qkv = np.random.default_rng(1).standard_normal((tokens, 3 * head_dim), np.float32)
    qkv[4, 2 * head_dim :] = [np.inf, -np.inf, np.nan, 3.4e38, 1.00390625, 1.01171875, -0.0, 1e-45]
    keys, values = paired(
        np.zeros((2, 1, head_dim, BLOCK_TOKENS), np.uint16), np.zeros((2, 1, BLOCK_TOKENS, head_dim), np.uint16)
    )
    places, one = np.arange(tokens, dtype=np.int32), np.ones((tokens, head_dim // 2), np.float32)
    nothing, eps = np.zeros(0, np.float32), np.float32(1e-5)
    tables, line = np.arange(2, dtype=np.int32)[None], np.zeros(tokens, np.int32)
    attention.turn_and_store(qkv, 1, places, line, one, 0 * one, nothing, nothing, eps, tables, keys, values)
    nearest, _ = bf16(qkv)
    stored = np.concatenate(keys.swapaxes(3, 4).reshape(2, head_dim, BLOCK_TOKENS).swapaxes(1, 2))[:tokens]
    np.testing.assert_array_equal(as_fp32(stored), nearest[:, head_dim : 2 * head_dim])
    stored = values.swapaxes(3, 4).reshape(-1, head_dim)[:tokens]
    np.testing.assert_array_equal(as_fp32(stored), nearest[:, 2 * head_dim :])


@pytest.mark.parametrize("way", [attention, AMX])
def test_a_broken_number_is_seen(way) -> None:  # type: ignore[no-untyped-def]
    random = np.random.default_rng(2)
    _, keys = bf16(random.standard_normal((1, 1, 64, BLOCK_TOKENS), np.float32))
    _, values = bf16(random.standard_normal((1, 1, BLOCK_TOKENS, 64), np.float32))
    qkv = random.standard_normal((3, 3 * 64), np.float32)
    qkv[1, 5] = np.nan
    out = attend(qkv, *paired(keys, values), 7, 1, way=way)
    assert np.isnan(out[1]).all()
    assert np.isfinite(out[[0, 2]]).all()
