"""Attention against torch's, whatever lines and blocks its tiles have; and the same bits in any batch."""

import numpy as np
import pytest
import torch

from headway.prefix import BLOCK_TOKENS
from services.text_worker.cpu import attention
from services.text_worker.cpu.compiled import use_threads


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    use_threads(1)


def attend(qkv: np.ndarray, keys: np.ndarray, values: np.ndarray, start: int, heads: int) -> np.ndarray:
    """Rows of one sequence, from position `start` on, over blocks in falling order."""
    out = np.full((len(qkv), heads * keys.shape[2]), np.nan, np.float32)
    tables = np.arange(len(keys))[::-1].astype(np.int32)[None]
    size = attention.TILE_ROWS
    tiles = [(0, row, min(size, len(qkv) - row), start + row) for row in range(0, len(qkv), size)]
    scale = np.float32(keys.shape[2] ** -0.5)
    attention.attend(qkv, out, keys, values, tables, np.array(tiles, np.int32), heads, scale, 0, np.float32(0.0))
    return out


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
