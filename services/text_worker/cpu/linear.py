"""Matrices packed once, and rows multiplied by them: fp32 and bf16 by oneDNN, 8 bits by our own exact product."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from services.text_worker.cpu import int8_gemm
from services.text_worker.cpu.int8_gemm import PackedInt8
from services.text_worker.model.weights import Matrix

WeightKind = Literal["fp32", "bf16", "int8"]
TILE_ROWS = 16
"""Rows of every product in batch-invariant mode, whatever the batch."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What goes into a product: fp32 rows, and the same in 8 bits where the matrices are."""

    plain: Tensor  # [rows, width] fp32
    packed: np.ndarray  # [rows, width up to a multiple of 4] uint8, or no columns
    scales: np.ndarray  # [rows] fp32, or none

    def take(self, rows: Tensor) -> "Rows":
        """Some of the rows."""
        places = rows.numpy()
        packed, scales = (
            (self.packed[places], self.scales[places]) if self.packed.shape[1] else (self.packed, self.scales)
        )
        return Rows(self.plain[rows], packed, scales)


class Packed(Protocol):
    """A matrix as a kind of weights keeps it."""

    def product(self, x: Rows) -> Tensor:
        """x @ weight.T + bias, fp32 [rows, out]."""

    @property
    def size_bytes(self) -> int: ...


@dataclass(frozen=True)
class LibraryMatrix:
    """A matrix in oneDNN's own order, fp32 or bf16; where torch came without oneDNN, as the checkpoint has it."""

    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    reordered: bool
    invariant: bool
    size_bytes: int

    def product(self, x: Rows) -> Tensor:
        """In batch-invariant mode always over `TILE_ROWS` rows: libraries choose another order of sums for others."""
        rows = x.plain.to(self.dtype)
        if not self.invariant:
            return self._product(rows).float()
        padded = functional.pad(rows, (0, 0, 0, -len(rows) % TILE_ROWS))
        return torch.cat([self._product(tile) for tile in torch.split(padded, TILE_ROWS)])[: len(rows)].float()

    def _product(self, rows: Tensor) -> Tensor:
        if not self.reordered:
            return functional.linear(rows, self.weight, self.bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")
        return product


@dataclass(frozen=True)
class Int8Matrix:
    """A matrix in 8 bits with a scale a column; exact sums, so every batch gives a row the same bits."""

    packed: PackedInt8
    bias: np.ndarray  # [out] fp32, or empty

    def product(self, x: Rows) -> Tensor:
        out = torch.empty(len(x.plain), self.packed.columns)
        p = self.packed
        int8_gemm.product(x.packed, x.scales, p.weight, p.scales, p.offsets, self.bias, out.numpy())
        return out

    @property
    def size_bytes(self) -> int:
        return self.packed.weight.nbytes + self.packed.scales.nbytes + self.packed.offsets.nbytes


def packer(kind: WeightKind, *, invariant: bool = False) -> Callable[[Matrix], Packed]:
    """What `load_weights` packs each matrix with."""
    if kind == "int8":
        return _pack_int8
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    return lambda matrix: _pack_library(matrix, dtype, invariant=invariant)


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 [out, in], fp32 scales [out]) with round(weight / scale), the largest of each row at 127."""
    scales = weight.float().abs().amax(dim=1) / 127.0
    safe = scales.clamp_min(torch.finfo(torch.float32).tiny)
    return (weight.float() / safe[:, None]).round().clamp_(-127, 127).to(torch.int8), scales


def _pack_int8(matrix: Matrix) -> Int8Matrix:
    quantised, scales = quantise(matrix.weight)
    bias = np.zeros(0, np.float32) if matrix.bias is None else matrix.bias.float().numpy()
    return Int8Matrix(int8_gemm.pack(quantised.numpy(), scales.numpy()), bias)


def _pack_library(matrix: Matrix, dtype: torch.dtype, *, invariant: bool) -> LibraryMatrix:
    weight = matrix.weight.to(dtype)
    bias = None if matrix.bias is None else matrix.bias.to(dtype)
    reordered = torch.backends.mkldnn.is_available() and (
        dtype is torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    kept = torch.ops.mkldnn._reorder_linear_weight(weight, None) if reordered else weight
    return LibraryMatrix(kept, bias, dtype, reordered, invariant, weight.nbytes)
