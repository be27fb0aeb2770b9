"""PSNR and SSIM against what they are defined as."""

import numpy as np
import pytest

from services.splat_worker.likeness import psnr_db, ssim

RNG = np.random.default_rng(3)
FRAME = RNG.integers(0, 256, size=(24, 31, 3), dtype=np.uint8)


def by_definition(frame: np.ndarray, top: np.ndarray) -> float:
    """SSIM one window after the other, in float64."""
    x, y = (each.astype(np.float64) @ [0.299, 0.587, 0.114] for each in (frame, top))
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2
    found = []
    for row in range(x.shape[0] - 10):
        for column in range(x.shape[1] - 10):
            a, b = (each[row : row + 11, column : column + 11] for each in (x, y))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            both = (window * (a - mean_a) * (b - mean_b)).sum()
            c1, c2 = 6.5025, 58.5225
            alike = (2 * mean_a * mean_b + c1) * (2 * both + c2)
            found.append(alike / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    return float(np.mean(found))


def test_ssim_is_its_definition() -> None:
    noisy = np.clip(FRAME + RNG.normal(0, 40, FRAME.shape), 0, 255).astype(np.uint8)
    assert ssim(noisy, FRAME) == pytest.approx(by_definition(noisy, FRAME), abs=1e-4)
    assert ssim(FRAME, FRAME) == pytest.approx(1, abs=1e-6)
    assert ssim(255 - FRAME, FRAME) < 0


def test_psnr_counts_all_frames_together() -> None:
    off = FRAME ^ 1  # every value is off by one
    assert psnr_db([off], [FRAME]) == pytest.approx(48.1308, abs=1e-3)
    assert psnr_db([off, FRAME], [FRAME, FRAME]) == pytest.approx(48.1308 + 3.0103, abs=1e-3)
    assert psnr_db([FRAME], [FRAME]) == 99
