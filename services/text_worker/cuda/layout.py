"""The spans of one pass end to end, one row a token, as tensors on the device."""

from collections.abc import Sequence as Several
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from headway.prefix import BLOCK_TOKENS
from kernels.paged_attention import PagedBatch
from services.text_worker.backend import Span
from services.text_worker.kv.store import blocks_of


@dataclass(frozen=True, eq=False)
class Layout:
    """What a pass reads beside weights and cache."""

    tokens: Tensor  # [rows] int64
    positions: Tensor  # [rows] int64
    slots: Tensor  # [rows] int64: each token's place among all of the cache's
    wanted: Tensor  # [wanted] int64 rows
    batch: PagedBatch

    def take(self, other: "Layout") -> None:
        """Copies one of as many rows, sequences and wanted rows into these tensors, and leaves the rest of tables."""
        for mine, given in zip(self._tensors, other._tensors, strict=True):
            mine.copy_(given, non_blocking=True)
        tables = other.batch.block_tables
        self.batch.block_tables[:, : tables.shape[1]].copy_(tables, non_blocking=True)

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return self.tokens, self.positions, self.slots, self.wanted, self.batch.k_lengths, self.batch.q_offsets


def lay_out(spans: Several[Span], cache_blocks: int, device: torch.device) -> Layout:
    """The spans as they are: each is one of the batch's sequences."""
    counts = [len(span.tokens) for span in spans]
    ends = list(accumulate(counts))
    places = [(span, position) for span in spans for position in range(span.start, span.end)]
    slots = [
        span.blocks[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS for span, position in places
    ]
    wanted = [row for span, end in zip(spans, ends, strict=True) for row in range(end - span.wanted, end)]
    return Layout(
        tokens=torch.tensor([token for span in spans for token in span.tokens], device=device),
        positions=torch.tensor([position for _, position in places], device=device),
        slots=torch.tensor(slots, device=device),
        wanted=torch.tensor(wanted, device=device),
        batch=PagedBatch.build(
            [list(span.blocks) for span in spans],
            [span.end for span in spans],
            counts,
            block_size=BLOCK_TOKENS,
            cache_blocks=cache_blocks,
            device=device,
        ),
    )


def rows_of(spans: Several[Span], least: int, spare: int) -> list[Span]:
    """The same tokens, each a span of its own over the same blocks, filled up to `least` with ones that do nothing.

    A pass writes all keys before it reads any, so every token still sees those before it. What fills up is written to
    block `spare`.
    """
    rows = [Span(span.blocks, span.start + i, (token,)) for span in spans for i, token in enumerate(span.tokens)]
    return rows + [Span((spare,), 0, (0,))] * (least - len(rows))


def resting(rows: int, cache_blocks: int, context: int, device: torch.device) -> Layout:
    """Tensors for `rows` rows of one token each and tables for any context; every row does nothing.

    The batch is told of the longest context there may be, because how it is cut up must not change with its content.
    """
    built = lay_out(rows_of((), rows, cache_blocks - 1), cache_blocks, device)
    batch = PagedBatch(
        block_tables=torch.zeros(rows, blocks_of(context), dtype=torch.int32, device=device),
        k_lengths=built.batch.k_lengths,
        q_offsets=built.batch.q_offsets,
        block_size=BLOCK_TOKENS,
        cache_blocks=cache_blocks,
        q_tokens=rows,
        max_q_tokens=1,
        max_k_tokens=context,
    )
    layout = Layout(built.tokens, built.positions, built.slots, built.wanted, batch)
    layout.take(built)
    return layout
