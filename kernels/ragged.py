"""Ragged batches, and what one attention call is asked to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

INT32_MAX = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Ragged:
    """Sequences of different lengths packed along the token dimension, described by cumulative lengths.

    Sequence i owns query tokens `q_offsets[i]:q_offsets[i + 1]` and key tokens `k_offsets[i]:k_offsets[i + 1]`;
    either may be empty. Build it with `from_lengths` or `from_offsets`, which check everything once, so that the calls
    that share it (one per layer) neither check again nor wait for the device.
    """

    q_offsets: torch.Tensor  # [sequences + 1], int32
    k_offsets: torch.Tensor  # [sequences + 1], int32
    max_q_tokens: int
    max_k_tokens: int
    total_q_tokens: int
    total_k_tokens: int

    @classmethod
    def from_lengths(
        cls, q_lengths: Sequence[int], k_lengths: Sequence[int] | None = None, device: torch.device | str = "cpu"
    ) -> Ragged:
        """From tokens per sequence; `k_lengths` defaults to `q_lengths`. ValueError for negative or unequal many."""
        k_lengths = q_lengths if k_lengths is None else k_lengths
        if len(q_lengths) != len(k_lengths):
            raise ValueError(f"k_lengths: expected {len(q_lengths)} sequences as in q_lengths, got {len(k_lengths)}")
        q = _offsets("q_lengths", q_lengths)
        k = _offsets("k_lengths", k_lengths)
        return cls(
            q_offsets=torch.tensor(q, dtype=torch.int32, device=device),
            k_offsets=torch.tensor(k, dtype=torch.int32, device=device),
            max_q_tokens=max(q_lengths),
            max_k_tokens=max(k_lengths),
            total_q_tokens=q[-1],
            total_k_tokens=k[-1],
        )

    @classmethod
    def from_offsets(cls, q_offsets: torch.Tensor, k_offsets: torch.Tensor | None = None) -> Ragged:
        """From cumulative lengths [sequences + 1] (first entry 0), on their device; read once on the host."""
        k_offsets = q_offsets if k_offsets is None else k_offsets
        if q_offsets.device != k_offsets.device:
            raise ValueError(f"k_offsets: expected device {q_offsets.device} as q_offsets, got {k_offsets.device}")
        lengths = [_lengths("q_offsets", q_offsets), _lengths("k_offsets", k_offsets)]
        return cls.from_lengths(lengths[0], lengths[1], device=q_offsets.device)

    @property
    def sequences(self) -> int:
        return len(self.q_offsets) - 1

    def spans(self) -> list[tuple[slice, slice]]:
        """Query and key token ranges of each sequence, on the host."""
        q, k = self.q_offsets.tolist(), self.k_offsets.tolist()
        return [(slice(*queries), slice(*keys)) for queries, keys in zip(pairwise(q), pairwise(k), strict=True)]


@dataclass(frozen=True, eq=False)
class Spec:
    """What one attention call does beside its tensors. `scale` multiplies the scores.

    Causal masks are aligned to the ends: query i of n sees key j of m when j <= i + m - n.
    """

    causal: bool
    scale: float
    ragged: Ragged | None


def _offsets(argument: str, lengths: Sequence[int]) -> list[int]:
    if not lengths:
        raise ValueError(f"{argument}: expected at least one sequence, got none")
    for index, length in enumerate(lengths):
        if length < 0:
            raise ValueError(f"{argument}[{index}]: expected a length of at least 0, got {length}")
    offsets = [0, *accumulate(lengths)]
    if offsets[-1] > INT32_MAX:
        raise ValueError(f"{argument}: expected at most {INT32_MAX} tokens in all, got {offsets[-1]}")
    return offsets


def _lengths(argument: str, offsets: torch.Tensor) -> list[int]:
    if offsets.dtype not in (torch.int32, torch.int64) or offsets.ndim != 1 or len(offsets) < 2:
        raise ValueError(
            f"{argument}: expected int32 or int64 [sequences + 1], got {offsets.dtype} {tuple(offsets.shape)}"
        )
    values = offsets.tolist()
    if values[0] != 0:
        raise ValueError(f"{argument}[0]: expected 0, got {values[0]}")
    return [end - start for start, end in pairwise(values)]
