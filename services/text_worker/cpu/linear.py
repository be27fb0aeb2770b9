"""Matrices packed once, and rows multiplied by them: 8 bits, and bf16 where there is AMX, by products of our own.

fp32, and bf16 elsewhere, by oneDNN.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from services.text_worker.cpu import amx, bf16_amx, int8_gemm
from services.text_worker.cpu.bf16_amx import PackedBf16
from services.text_worker.cpu.int8_gemm import PackedInt8
from services.text_worker.model.weights import Matrix

WeightKind = Literal["fp32", "bf16", "int8"]
TILE_ROWS = 16
"""Rows of each of oneDNN's products in batch-invariant mode, whatever the batch."""
_NO_SCALES = np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class Rows:
    """What goes into a product: fp32 rows, and the same in fewer bits where our own products read those."""

    plain: Tensor  # [rows, width] fp32
    packed: np.ndarray  # [rows, width up to a multiple of 4] uint8; or `bf16_amx.empty_rows`; or empty
    scales: np.ndarray  # [rows] fp32 of the 8-bit rows, or none

    def take(self, rows: Tensor) -> "Rows":
        """Some of the rows."""
        places = rows.numpy()
        if self.packed.ndim == 4:
            return Rows(self.plain[rows], bf16_amx.take(self.packed, places), self.scales)
        if not self.packed.size:
            return Rows(self.plain[rows], self.packed, self.scales)
        packed = amx.aligned((len(places), self.packed.shape[1]), np.uint8)
        packed[:] = self.packed[places]
        return Rows(self.plain[rows], packed, self.scales[places])


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


@dataclass(frozen=True)
class Bf16Matrix:
    """A matrix in bf16 whose sums are in one order, so that every batch gives a row the same bits."""

    packed: PackedBf16

    def product(self, x: Rows) -> Tensor:
        out = torch.empty(len(x.plain), self.packed.columns)
        bf16_amx.product(x.packed, self.packed, out.numpy())
        return out

    @property
    def size_bytes(self) -> int:
        return self.packed.weight.nbytes + self.packed.bias.nbytes


def empty_rows(kind: WeightKind, count: int, width: int) -> Rows:
    """Memory for what matrices of this kind are multiplied with."""
    plain = torch.empty(count, width)
    if kind == "bf16" and bf16_amx.has_amx():
        return Rows(plain, bf16_amx.empty_rows(count, width), _NO_SCALES)
    if kind != "int8":
        return Rows(plain, np.empty((count, 0), np.uint8), _NO_SCALES)
    packed = amx.aligned((count, -(-width // 4) * 4), np.uint8)
    packed[:, width:] = 128  # zeros that a matrix's padding meets
    return Rows(plain, packed, np.empty(count, np.float32))


def packer(kind: WeightKind, *, invariant: bool = False) -> Callable[[Matrix], Packed]:
    """What `load_weights` packs each matrix with."""
    if kind == "int8":
        return _pack_int8
    if kind == "bf16" and bf16_amx.has_amx():
        return lambda matrix: Bf16Matrix(bf16_amx.pack(matrix.weight, matrix.bias))
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
