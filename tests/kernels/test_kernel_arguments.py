"""Bad input: a ValueError that names the argument and what was expected, before anything runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.flash_attention import flash_attention
from kernels.flash_attention_jvp import flash_attention_jvp
from kernels.paged_attention import PagedBatch, paged_attention
from kernels.ragged import Ragged

Q, K = torch.zeros(2, 4, 5, 16), torch.zeros(2, 2, 7, 16)
PACKED = torch.zeros(6, 2, 16)


def refused(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    ("q", "k", "v", "message"),
    [
        (Q[0], K, K, "q: expected 4 dimensions"),
        (Q.int(), K, K, "q: expected one of"),
        (Q, K.half(), K, "k: expected the dtype of q, torch.float32"),
        (Q, K, K.to("meta"), "v: expected the device of q, cpu"),
        (Q, K.mT.contiguous().mT, K, "k: expected a last dimension of stride 1"),
        (Q[..., :15].contiguous(), K, K, "q: expected a head dim of 16..256, a multiple of 8, got 15"),
        (torch.zeros(1, 1, 1, 264), K, K, "q: expected a head dim of 16..256, a multiple of 8, got 264"),
        (Q, torch.zeros(2, 2, 7, 32), K, "k: expected the head dim of q, 16"),
        (Q, K, K[:, :, :6], "v: expected the shape of k"),
        (Q, torch.zeros(2, 3, 7, 16), torch.zeros(2, 3, 7, 16), "k: expected a number of heads that divides q's 4"),
        (Q, torch.zeros(2, 0, 7, 16), torch.zeros(2, 0, 7, 16), "k: expected at least one head"),
        (Q, K[:1], K[:1], "k: expected the batch of q, 2"),
    ],
)
@pytest.mark.parametrize("op", [flash_attention, flash_attention_jvp])
def test_operands(op: Callable[..., object], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, message: str) -> None:
    refused(message, lambda: op(q, k, v))


def test_scale_and_ragged_totals() -> None:
    refused("scale: expected a finite number, got nan", lambda: flash_attention(Q, K, K, scale=float("nan")))
    ragged = Ragged.from_lengths([4, 2])
    refused("q: expected 3 dimensions", lambda: flash_attention(Q, K, K, ragged=ragged))
    refused("q: expected 6 tokens", lambda: flash_attention(PACKED[:5], PACKED, PACKED, ragged=ragged))
    refused("k: expected 6 tokens", lambda: flash_attention(PACKED, PACKED[:5], PACKED[:5], ragged=ragged))
    elsewhere = Ragged.from_lengths([4, 2], device="meta")
    refused("ragged: expected device cpu", lambda: flash_attention(PACKED, PACKED, PACKED, ragged=elsewhere))


def test_tangents_match_their_primals() -> None:
    refused("dq: expected its primal's shape", lambda: flash_attention_jvp(Q, K, K, Q[:, :2]))
    refused("dk: expected the dtype", lambda: flash_attention_jvp(Q, K, K, None, K.half()))
    refused("dv: expected a last dimension of stride 1", lambda: flash_attention_jvp(Q, K, K, dv=K.mT.contiguous().mT))


def test_ragged_lengths() -> None:
    refused("q_lengths: expected at least one sequence", lambda: Ragged.from_lengths([]))
    refused("k_lengths: expected 2 sequences", lambda: Ragged.from_lengths([1, 2], [3]))
    refused("k_lengths[1]: expected a length of at least 0, got -2", lambda: Ragged.from_lengths([1, 2], [3, -2]))
    refused("q_lengths: expected at most 2147483647 tokens", lambda: Ragged.from_lengths([2**30, 2**30]))
    refused("q_offsets: expected int32 or int64", lambda: Ragged.from_offsets(torch.zeros(3)))
    refused("q_offsets[0]: expected 0, got 1", lambda: Ragged.from_offsets(torch.tensor([1, 2])))
    refused("q_lengths[1]: expected a length of at least 0", lambda: Ragged.from_offsets(torch.tensor([0, 5, 3])))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-3, 50), max_size=6))
def test_offsets_are_accepted_exactly_when_no_length_is_negative(lengths: list[int]) -> None:
    offsets = torch.tensor([0, *accumulate(lengths)])
    if not lengths or min(lengths) < 0:
        with pytest.raises(ValueError, match=r"offsets|lengths"):
            Ragged.from_offsets(offsets)
    else:
        ragged = Ragged.from_offsets(offsets)
        assert ragged.max_q_tokens == max(lengths) and ragged.total_k_tokens == sum(lengths)
        assert [queries.stop - queries.start for queries, _ in ragged.spans()] == lengths


def build(**changes: object) -> PagedBatch:
    arguments: dict[str, object] = {
        "block_tables": [[0, 1], [2]], "k_lengths": [20, 16], "q_lengths": [1, 1], "block_size": 16, "cache_blocks": 3
    }  # fmt: skip
    return PagedBatch.build(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 8}, "block_size: expected a power of two of at least 16, got 8"),
        ({"block_size": 48}, "block_size: expected a power of two"),
        ({"block_tables": [[0, 3], [2]]}, "block_tables[0][1]: expected a block of 0..2, got 3"),
        ({"block_tables": [[0, -1], [2]]}, "block_tables[0][1]: expected a block of 0..2, got -1"),
        ({"block_tables": [[0], [2]]}, "block_tables[0]: expected 2 blocks for 20 tokens, got 1"),
        ({"block_tables": [[0, 1]]}, "block_tables: expected 2 sequences"),
        ({"k_lengths": [], "q_lengths": [], "block_tables": []}, "k_lengths: expected at least one sequence"),
        ({"q_lengths": [1]}, "q_lengths: expected 2 sequences"),
        ({"q_lengths": [1, -1]}, "q_lengths[1]: expected at least 0, got -1"),
        ({"q_lengths": [1, 17]}, "k_lengths[1]: expected at least its 17 query tokens, got 16"),
    ],
)
def test_paged_batches(changes: dict[str, object], message: str) -> None:
    refused(message, lambda: build(**changes))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-2, 5), max_size=4), st.integers(-1, 70))
def test_a_batch_is_accepted_exactly_when_its_blocks_lie_in_the_cache(table: list[int], length: int) -> None:
    needed = -(-length // 16)
    good = length >= 1 and len(table) >= needed and all(0 <= block < 3 for block in table[:needed])
    arguments = {"block_tables": [table], "k_lengths": [length], "q_lengths": None}
    if good:
        assert build(**arguments).block_tables.tolist() == [table[:needed]]
    else:
        with pytest.raises(ValueError, match="expected"):
            build(**arguments)


def test_paged_operands() -> None:
    batch = build()
    q, cache = torch.zeros(2, 4, 16), torch.zeros(3, 16, 2, 16)
    quantised, scales = cache.to(torch.int8), torch.ones(3, 16, 2)
    refused("q: expected 2 tokens", lambda: paged_attention(q[:1], cache, cache, batch))
    refused("k_cache: expected [3, 16, ...]", lambda: paged_attention(q, cache[:2], cache, batch))
    refused("v_cache: expected the dtype of q", lambda: paged_attention(q, cache, cache.half(), batch))
    refused("k_cache: expected the head dim of q", lambda: paged_attention(q, torch.zeros(3, 16, 2, 32), cache, batch))
    refused("v_cache: expected the shape of k_cache", lambda: paged_attention(q, cache, cache[:, :, :1], batch))
    odd = torch.zeros(3, 16, 3, 16)
    refused("k_cache: expected heads that divide q's 4", lambda: paged_attention(q, odd, odd, batch))
    refused("k_scales: expected a tensor", lambda: paged_attention(q, quantised, quantised, batch))
    refused("k_scales: expected none", lambda: paged_attention(q, cache, cache, batch, k_scales=scales))
    good = {"k_scales": scales, "v_scales": scales}
    refused(
        "v_cache: expected the dtype of k_cache",
        lambda: paged_attention(q, quantised, cache.to(torch.float8_e4m3fn), batch, **good),
    )
    refused(
        "v_scales: expected (3, 16, 2)",
        lambda: paged_attention(q, quantised, quantised, batch, k_scales=scales, v_scales=scales[0]),
    )
    refused(
        "k_scales: expected torch.float32",
        lambda: paged_attention(q, quantised, quantised, batch, k_scales=scales.half(), v_scales=scales),
    )
