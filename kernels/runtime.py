"""Where kernels run: on a CUDA device, in Triton's interpreter, or (everywhere else) as the plain torch reference."""

from __future__ import annotations

import os
from functools import cache

import torch


def interpreting() -> bool:
    """True under TRITON_INTERPRET=1: CPU tensors then run the kernels in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def runs_triton(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda or interpreting()


@cache
def capability(device: torch.device) -> int:
    """Compute capability as one number, 90 for 9.0; what the tables of tiles are looked up by."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise ValueError(f"device: expected compute capability 8.0 or newer, got {major}.{minor}")
    return 10 * major + minor


@cache
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors to fill; the interpreter plays a small device."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
