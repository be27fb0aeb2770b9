"""Where each sequence of a paged batch lies: checked once per engine step, shared by every layer of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from kernels.checks import require

BLOCK_SIZE_MIN = 16


@dataclass(frozen=True, eq=False)
class PagedBatch:
    """Sequences whose keys lie in blocks of a shared cache, and how many query tokens each has at its end.

    Build it with `build`, from host data; the tensors are then on the device. It stays valid for the cache it was
    built for.
    """

    block_tables: torch.Tensor  # [sequences, most blocks of any sequence], int32: cache blocks in order
    k_lengths: torch.Tensor  # [sequences], int32: tokens in the cache, the query tokens included
    q_offsets: torch.Tensor  # [sequences + 1], int32
    block_size: int
    cache_blocks: int
    q_tokens: int  # in all
    max_q_tokens: int
    max_k_tokens: int

    @classmethod
    def build(
        cls,
        block_tables: Sequence[Sequence[int]],
        k_lengths: Sequence[int],
        q_lengths: Sequence[int] | None = None,
        *,
        block_size: int,
        cache_blocks: int,
        device: torch.device | str = "cpu",
    ) -> PagedBatch:
        """From each sequence's block numbers, tokens in the cache, and query tokens (one each, for decode, by default).

        Entries past a sequence's last block are not read. ValueError for a block out of range, a table too short, a
        negative length, more queries than keys, or a block size that is not a power of two of at least 16.
        """
        q_lengths = [1] * len(k_lengths) if q_lengths is None else q_lengths
        count = len(k_lengths)
        power_of_two = block_size >= BLOCK_SIZE_MIN and block_size & (block_size - 1) == 0
        require(power_of_two, "block_size", f"a power of two of at least {BLOCK_SIZE_MIN}", block_size)
        require(count > 0, "k_lengths", "at least one sequence", count)
        require(len(q_lengths) == count, "q_lengths", f"{count} sequences as in k_lengths", len(q_lengths))
        require(len(block_tables) == count, "block_tables", f"{count} sequences as in k_lengths", len(block_tables))
        used = [
            _used_blocks(index, table, k, q, block_size, cache_blocks)
            for index, (table, k, q) in enumerate(zip(block_tables, k_lengths, q_lengths, strict=True))
        ]
        widest = max(1, *map(len, used))
        rows = [blocks + [0] * (widest - len(blocks)) for blocks in used]
        return cls(
            block_tables=torch.tensor(rows, dtype=torch.int32).to(device),
            k_lengths=torch.tensor(k_lengths, dtype=torch.int32).to(device),
            q_offsets=torch.tensor([0, *accumulate(q_lengths)], dtype=torch.int32).to(device),
            block_size=block_size,
            cache_blocks=cache_blocks,
            q_tokens=sum(q_lengths),
            max_q_tokens=max(q_lengths),
            max_k_tokens=max(k_lengths),
        )

    @property
    def sequences(self) -> int:
        return len(self.k_lengths)


def _used_blocks(
    index: int, table: Sequence[int], k_length: int, q_length: int, block_size: int, cache_blocks: int
) -> list[int]:
    """The blocks that hold one sequence's keys, each checked to lie in the cache."""
    require(q_length >= 0, f"q_lengths[{index}]", "at least 0", q_length)
    require(k_length >= q_length, f"k_lengths[{index}]", f"at least its {q_length} query tokens", k_length)
    needed = -(-k_length // block_size)
    require(len(table) >= needed, f"block_tables[{index}]", f"{needed} blocks for {k_length} tokens", len(table))
    used = [int(block) for block in table[:needed]]
    for place, block in enumerate(used):
        require(
            0 <= block < cache_blocks, f"block_tables[{index}][{place}]", f"a block of 0..{cache_blocks - 1}", block
        )
    return used
