"""The 8-bit product is exact: every way to compute it gives the sums of whole numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.text_worker.cpu import int8_amx, int8_gemm, rows
from services.text_worker.cpu.compiled import use_threads
from services.text_worker.cpu.linear import Rows, packer, quantise
from services.text_worker.model.weights import Matrix

PRODUCTS = [
    int8_gemm.plain_product,
    pytest.param(
        int8_gemm.vnni_product,
        marks=pytest.mark.skipif(not int8_gemm.has_vnni(), reason="this CPU has no AVX-512 VNNI"),
    ),
]


NEEDS_AMX = pytest.mark.skipif(not int8_amx.has_amx(), reason="this CPU has no AMX, or this process may not use it")
PRODUCTS.append(pytest.param(int8_gemm.amx_product, marks=NEEDS_AMX))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    use_threads(1)


@pytest.mark.parametrize("product", PRODUCTS)
@given(st.integers(1, 15), st.integers(1, 140), st.integers(1, 150), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_products_are_exact(product, count: int, columns: int, inner: int, biased: bool, seed: int) -> None:  # type: ignore[no-untyped-def]
    random = np.random.default_rng(seed)
    weight = random.integers(-127, 128, (columns, inner)).astype(np.int8)
    scales = random.random(columns, np.float32)
    x = np.full((count, -(-inner // 4) * 4), 128, np.uint8)
    x[:, :inner] = random.choice([0, 1, 128, 254, 255], (count, inner))
    row_scales = random.random(count, np.float32)
    bias = random.random(columns, np.float32) if biased else np.zeros(0, np.float32)
    packed = int8_gemm.pack(weight, scales)
    out = np.full((count, columns), np.nan, np.float32)
    product(x, row_scales, packed.weight, packed.scales, packed.offsets, bias, out)
    sums = (x[:, :inner].astype(np.int64) - 128) @ weight.astype(np.int64).T
    expected = sums.astype(np.float32) * scales * row_scales[:, None]
    np.testing.assert_array_equal(out, expected + bias if biased else expected)


@NEEDS_AMX
@given(st.integers(1, 100), st.integers(1, 140), st.integers(1, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_tiles_give_what_vectors_give(count: int, columns: int, tiles: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    packed = int8_gemm.pack(random.integers(-127, 128, (columns, 64 * tiles)).astype(np.int8), np.ones(columns))
    x, scales = random.integers(0, 256, (count, 64 * tiles)).astype(np.uint8), random.random(count, np.float32)
    plain, tiled = (np.full((count, columns), np.nan, np.float32) for _ in range(2))
    for product, out in ((int8_gemm.plain_product, plain), (int8_gemm.amx_product, tiled)):
        product(x, scales, packed.weight, packed.scales, packed.offsets, np.zeros(0, np.float32), out)
    np.testing.assert_array_equal(tiled, plain)


def test_rows_in_8_bits_are_the_nearest_and_zeros_stay_zeros() -> None:
    x = np.random.default_rng(0).standard_normal((5, 70)).astype(np.float32)
    x[3] = 0.0
    packed, scales = np.full((5, 72), 128, np.uint8), np.full(5, np.nan, np.float32)
    rows.pack_rows(x, packed, scales)
    back = (packed[:, :70].astype(np.float32) - 128) * scales[:, None]
    assert np.abs(back - x).max() <= np.abs(x).max() / 127 * 0.5001
    assert not back[3].any()
    assert np.all(packed[:, 70:] == 128)


def test_a_quantised_matrix_stays_near() -> None:
    weight, x = torch.randn(48, 64), torch.randn(9, 64)
    quantised, scales = quantise(weight)
    assert int(quantised.abs().max()) == 127
    assert torch.all((quantised * scales[:, None] - weight).abs() <= scales[:, None] * 0.5001)
    packed, row_scales = np.empty((9, 64), np.uint8), np.empty(9, np.float32)
    rows.pack_rows(x.numpy(), packed, row_scales)
    found = packer("int8")(Matrix(weight, torch.ones(48))).product(Rows(x, packed, row_scales))
    exact = x @ weight.T + 1
    assert float((found - exact).norm() / exact.norm()) < 0.02


def test_a_row_of_zeros_in_a_matrix_is_no_division_by_zero() -> None:
    quantised, scales = quantise(torch.zeros(2, 8))
    assert not quantised.any()
    assert not scales.any()


def test_an_inner_length_whose_sums_could_overflow_is_refused() -> None:
    with pytest.raises(ValueError, match="overflow"):
        int8_gemm.pack(np.zeros((1, int8_gemm.MAX_INNER + 1), np.int8), np.ones(1, np.float32))
