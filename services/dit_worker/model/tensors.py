"""Reads safetensors as an attacker's file: size, names, shapes and dtypes are compared before a tensor is made."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

MAX_HEADER_BYTES = 1024 * 1024
WIDTHS = {"F16": 2, "F32": 4}


class CheckpointError(ValueError):
    """A model folder that cannot be served; `field` names the file and the part of it that is wrong."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_size(path: Path, expected: Mapping[str, Tensor], dtypes: tuple[str, ...], most_unread: float = 0.0) -> None:
    """Raises CheckpointError unless the file is as long as such tensors and a header.

    `most_unread`: how much else it may hold, as a share of them.
    """
    numbers = sum(tensor.numel() for tensor in expected.values())
    least = numbers * min(WIDTHS[dtype] for dtype in dtypes)
    most = int(numbers * max(WIDTHS[dtype] for dtype in dtypes) * (1 + most_unread)) + MAX_HEADER_BYTES
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(path.name, f"cannot be read: {error.strerror}") from error
    if not least <= size <= most:
        raise CheckpointError(path.name, f"is {size} bytes, its config needs {least} to {most}")


def read_tensors(
    path: Path, expected: Mapping[str, Tensor], dtypes: tuple[str, ...], unread: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Exactly the tensors named in `expected`, of those shapes, of `dtypes` and finite; else CheckpointError.

    Tensors whose names begin with one of `unread` may lie beside them.
    """
    try:
        with safe_open(path, framework="pt") as file:
            _check_names(path.name, {key for key in file.keys() if not key.startswith(unread)}, set(expected))  # noqa: SIM118
            for key, like in expected.items():
                _check_header(f"{path.name} {key}", file.get_slice(key), dtypes, like)
            tensors = {key: file.get_tensor(key) for key in expected}
    except SafetensorError as error:
        raise CheckpointError(path.name, f"is not a whole safetensors file: {error}") from error
    for key, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path.name} {key}", "holds NaN or infinity")
    return tensors


def _check_names(name: str, found: set[str], expected: set[str]) -> None:
    if found != expected:
        odd = sorted(found ^ expected)[0]
        raise CheckpointError(f"{name} {odd}", "is missing" if odd in expected else "is not in the topology")


def _check_header(field: str, part: Any, dtypes: tuple[str, ...], like: Tensor) -> None:
    if part.get_dtype() not in dtypes or list(part.get_shape()) != list(like.shape):
        found = f"{part.get_dtype()} {list(part.get_shape())}"
        raise CheckpointError(field, f"must be {' or '.join(dtypes)} {list(like.shape)}, is {found}")
