"""Products of bf16 in tiles: near the exact ones, and a row's bits are the same in any batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.text_worker.cpu import bf16_amx, rows
from services.text_worker.cpu.compiled import use_threads
from services.text_worker.cpu.linear import Bf16Matrix, LibraryMatrix, Packed, Rows, empty_rows, packer
from services.text_worker.model.weights import Matrix

NEEDS_AMX = pytest.mark.skipif(not bf16_amx.has_amx(), reason="this CPU has no AMX, or this process may not use it")
COUNTS = (1, 3, 16, 17, 32, 33, 64, 100)
SHAPES = ((1, 1), (31, 40), (32, 32), (70, 100), (96, 257), (130, 768))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    use_threads(1)


def packed_rows(x: torch.Tensor) -> Rows:
    made = empty_rows("bf16", *x.shape)
    made.packed[-1, :, len(x) % bf16_amx.ROWS or bf16_amx.ROWS :] = 0xFFFF  # lines behind the last row are no numbers
    rows.pack_rows(x.numpy(), made.packed, made.scales)
    return Rows(x, made.packed, made.scales)


def in_order(packed: np.ndarray, count: int, width: int) -> torch.Tensor:
    """bf16 [count, width] of rows in the order of tiles."""
    blocks, steps, lines, step = packed.shape
    flat = packed.transpose(0, 2, 1, 3).reshape(blocks * lines, steps * step)[:count, :width]
    return torch.from_numpy(np.ascontiguousarray(flat).view(np.int16)).view(torch.bfloat16)


def exact(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product = x.bfloat16().double() @ weight.bfloat16().double().T
    return product if bias is None else product + bias.bfloat16().double()


def check(matrix: Packed, x: Rows, expected: torch.Tensor, atol: float) -> None:
    found = matrix.product(x)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.double(), expected, atol=atol, rtol=atol)


@NEEDS_AMX
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_rounded_numbers(shape: tuple[int, int], biased: bool) -> None:
    torch.manual_seed(1)
    weight, bias = torch.randn(shape), torch.randn(shape[0]).bfloat16() if biased else None
    matrix = packer("bf16")(Matrix(weight.bfloat16(), bias))
    assert isinstance(matrix, Bf16Matrix)
    for count in COUNTS:
        x = torch.randn(count, shape[1])
        check(matrix, packed_rows(x), exact(x, weight, bias), 1e-5 * shape[1] ** 0.5 + 1e-6)


@NEEDS_AMX
@pytest.mark.parametrize("threads", [1, 2])
def test_a_rows_bits_do_not_depend_on_the_batch(threads: int) -> None:
    use_threads(threads)
    matrix = packer("bf16")(Matrix(torch.randn(100, 300), torch.randn(100)))
    x = torch.randn(max(COUNTS), 300)
    whole = matrix.product(packed_rows(x))
    for count in COUNTS:
        assert torch.equal(matrix.product(packed_rows(x[-count:])), whole[-count:])


@NEEDS_AMX
def test_taken_rows_are_multiplied_as_before() -> None:
    matrix, x = packer("bf16")(Matrix(torch.randn(48, 70))), torch.randn(50, 70)
    places = torch.tensor([49, 0, 33, 7] * 10)
    taken = packed_rows(x).take(places)
    assert torch.equal(taken.plain, x[places])
    assert torch.equal(matrix.product(taken), matrix.product(packed_rows(x))[places])


@pytest.mark.parametrize("invariant", [False, True])
def test_without_amx_the_library_multiplies(invariant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bf16_amx, "has_amx", lambda: False)
    weight, bias = torch.randn(70, 100), torch.randn(70)
    matrix = packer("bf16", invariant=invariant)(Matrix(weight, bias))
    assert isinstance(matrix, LibraryMatrix)
    for count in COUNTS:
        made = empty_rows("bf16", count, 100)
        assert not made.packed.size
        made.plain[:] = torch.randn(count, 100)
        check(matrix, made, exact(made.plain, weight, bias), 0.02)  # it rounds what it gives to bf16


@given(st.integers(1, 40), st.integers(1, 100), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_rows_in_16_bits_are_the_nearest(count: int, width: int, seed: int) -> None:
    """Over all bits that a number may have, the infinite and what is no number among them."""
    bits = np.random.default_rng(seed).integers(0, 2**32, (count, width), np.uint32)
    bits[0, 0] = 0x7FFFFFFF
    x, packed = bits.view(np.float32), bf16_amx.empty_rows(count, width)
    rows.pack_rows(x, packed, np.zeros(0, np.float32))
    found = in_order(packed, count, width)
    expected = torch.from_numpy(x.copy()).bfloat16()
    assert torch.equal(found.isnan(), expected.isnan())
    number = ~expected.isnan()
    assert torch.equal(found[number].view(torch.int16), expected[number].view(torch.int16))
    padding = in_order(packed, count, packed.shape[1] * bf16_amx.STEP)[:, width:]
    assert not padding.any()
