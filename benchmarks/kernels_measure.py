"""Timing on a CUDA device: cold L2, medians, and what the machine itself can do. Needs only torch and numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

L2_FLUSH_BYTES = 256 * 2**20
BUDGET_S_PER_FIGURE, REPEATS_MIN, REPEATS_MAX, WARMUPS = 0.25, 7, 60, 3
MATMUL_SIZE, COPY_BYTES = 8192, 4 * 2**30


@dataclass(frozen=True)
class Timing:
    """Of one call on the device: milliseconds over the repeats, and the most memory it held beyond its inputs."""

    median_ms: float
    p95_ms: float
    repeats: int
    peak_bytes: int


@dataclass(frozen=True)
class Machine:
    """What this device reaches on plain work, the yardstick for shares."""

    name: str
    matmul_tflops: float  # bf16, random data, 8192 cubed
    copy_bytes_per_s: float  # read and written bytes
    torch_version: str
    triton_version: str


def timed(call: Callable[[], object]) -> Timing:
    """Each repeat starts with a flushed L2; enqueueing the flush also lets the host run ahead of the device."""
    for _ in range(WARMUPS):
        call()
    torch.cuda.synchronize()
    base_bytes = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    peak_bytes = torch.cuda.max_memory_allocated() - base_bytes
    del result
    flush = torch.empty(L2_FLUSH_BYTES, dtype=torch.int8, device="cuda")
    first_ms = _once(call, flush)
    repeats = int(np.clip(BUDGET_S_PER_FIGURE * 1e3 / max(first_ms, 1e-3), REPEATS_MIN, REPEATS_MAX))
    times_ms = np.array([_once(call, flush) for _ in range(repeats)])
    return Timing(float(np.median(times_ms)), float(np.percentile(times_ms, 95)), repeats, peak_bytes)


def _once(call: Callable[[], object], flush: torch.Tensor) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    torch.cuda._sleep(200_000)  # about 0.1 ms: the launch below is queued before the device gets to it
    start.record()
    result = call()
    end.record()
    torch.cuda.synchronize()
    del result
    return float(start.elapsed_time(end))


def machine() -> Machine:
    import triton

    a, b = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = timed(lambda: a @ b)
    source = torch.empty(COPY_BYTES // 2, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    copy = timed(lambda: target.copy_(source))
    return Machine(
        name=torch.cuda.get_device_name(),
        matmul_tflops=2 * MATMUL_SIZE**3 / product.median_ms / 1e9,
        copy_bytes_per_s=COPY_BYTES / copy.median_ms * 1e3,
        torch_version=torch.__version__,
        triton_version=triton.__version__,
    )
