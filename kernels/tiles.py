"""Launch configurations: explicit tables per architecture in kernels/tables, rewritten by `benchmarks.kernels_tune`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLES = Path(__file__).parent / "tables"


@dataclass(frozen=True)
class Tile:
    """How one kernel is cut: queries and keys per tile, warps per program, depth of the load pipeline.

    `passes` is how many launches share out the gradients of one side, and `output_slice` how many columns of a wide
    head one program writes: both hold fewer accumulators at once, at the price of computing scores again.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    passes: int = 1
    output_slice: int = 256


def padded_head_dim(head_dim: int) -> int:
    """The power of two that the kernels pad a head dim to, and the class its tile is looked up by."""
    return max(16, 1 << (head_dim - 1).bit_length())


def tile_key(op: str, head_dim: int, bits: int) -> str:
    """E.g. "flash_attention_jvp/d64/16bit"."""
    return f"{op}/d{padded_head_dim(head_dim)}/{min(bits, 32)}bit"


def lookup(op: str, head_dim: int, bits: int, capability: int) -> Tile:
    """The tile for an op, a head dim and an element width; newer architectures use the newest table."""
    return table(90 if capability >= 90 else 80)[tile_key(op, head_dim, bits)]


@cache
def table(architecture: int) -> dict[str, Tile]:
    """All tiles of one architecture (80 or 90)."""
    document = json.loads((TABLES / f"sm_{architecture}.json").read_text())
    return {key: Tile(**tile) for key, tile in document["tiles"].items()}
