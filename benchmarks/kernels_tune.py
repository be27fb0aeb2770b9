"""Choose the tiles in kernels/tables: `python -m benchmarks.kernels_tune [--architecture 90] [--op OP] [--static]`.

A candidate must first compile clean ahead of time (no spill, shared memory fits, wgmma where it must be). On a CUDA
machine of that architecture the fastest clean candidate is kept; with --static, or without such a GPU, the first one
in the order below.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context

import torch

from kernels import aot, aot_cases
from kernels.tiles import TABLES, Tile, tile_key

HEAD_DIMS = (16, 32, 64, 128, 256)
# GeForce and L4 chips of the sm_80 family offer 99 KiB to one program; the sm_80 table is theirs too.
SHARED_LIMIT_BYTES = {80: 99 * 1024, 90: aot.SHARED_PER_PROGRAM_BYTES[90]}
REPEATS, WARMUPS = 20, 3


def candidates(op: str, head_dim: int, bits: int, architecture: int) -> list[Tile]:
    """Tiles worth trying, the likeliest first."""
    if bits == 32:
        return _ieee(op, head_dim)
    if op.startswith("paged"):
        return _paged(op, head_dim)
    return _hopper(op, head_dim) if architecture >= 90 else _ampere(op, head_dim)


def _hopper(op: str, head_dim: int) -> list[Tile]:
    if op == "flash_attention":
        if head_dim <= 64:
            return [Tile(128, 64, 4, 3), Tile(128, 128, 8, 3), Tile(128, 64, 8, 3), Tile(64, 64, 4, 3)]
        if head_dim == 128:
            return [Tile(128, 128, 8, 2), Tile(128, 64, 8, 3), Tile(64, 64, 4, 2)]
        return [Tile(128, 32, 8, 2), Tile(128, 64, 8, 2), Tile(64, 32, 4, 2)]
    if op == "flash_attention_jvp":
        if head_dim <= 64:
            return [Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), Tile(128, 32, 8, 3)]
        if head_dim == 128:
            return [Tile(128, 64, 8, 2), Tile(128, 32, 8, 3), Tile(128, 32, 8, 2), Tile(64, 32, 4, 2)]
        return [Tile(64, 16, 4, 2, 1, 64), Tile(64, 32, 4, 2, 1, 128), Tile(64, 16, 4, 2, 1, 128)]
    if op == "flash_attention_jvp_backward_q":
        if head_dim <= 64:
            return [Tile(128, 32, 8, 2), Tile(128, 64, 8, 2, 2), Tile(64, 64, 4, 2, 2), Tile(64, 32, 4, 2)]
        if head_dim == 128:
            return [Tile(128, 32, 8, 2, 2), Tile(64, 32, 4, 2, 2)]
        return [Tile(64, 16, 4, 2, 2, 64)]
    if head_dim <= 64:
        return [Tile(32, 128, 8, 2, 2), Tile(64, 128, 8, 2, 3), Tile(32, 64, 4, 2, 2), Tile(16, 128, 8, 2, 1)]
    if head_dim == 128:
        return [Tile(16, 64, 4, 2, 3), Tile(32, 64, 4, 2, 3), Tile(32, 64, 4, 2, 3, 64), Tile(32, 128, 8, 2, 3)]
    return [Tile(16, 64, 4, 2, 3, 64)]


def _ampere(op: str, head_dim: int) -> list[Tile]:
    if op == "flash_attention":
        if head_dim <= 64:
            return [Tile(128, 64, 4, 3), Tile(64, 64, 4, 3)]
        if head_dim == 128:
            return [Tile(128, 64, 8, 2), Tile(64, 64, 4, 2)]
        return [Tile(64, 32, 4, 2), Tile(64, 32, 8, 2), Tile(64, 16, 4, 2), Tile(32, 32, 4, 2)]
    if op == "flash_attention_jvp":
        if head_dim <= 64:
            return [Tile(64, 32, 4, 2), Tile(64, 32, 4, 1), Tile(64, 32, 8, 2), Tile(32, 32, 4, 2)]
        if head_dim == 128:
            return [Tile(64, 32, 8, 2), Tile(64, 16, 8, 2), Tile(32, 32, 4, 2, 1, 64), Tile(32, 16, 4, 1, 1, 64)]
        return [Tile(64, 16, 8, 1, 1, 64), Tile(32, 16, 4, 1, 1, 64), Tile(16, 16, 4, 1, 1, 64)]
    passes = 2 if op.endswith("_q") else 3
    wide = [Tile(32, 32, 4, 1, passes, 64), Tile(16, 16, 4, 1, passes, 64), Tile(16, 16, 4, 1, passes, 32)]
    if head_dim <= 64:
        return [Tile(64, 64, 8, 1, passes), Tile(64, 32, 8, 1, passes), Tile(32, 64, 8, 1, passes), *wide]
    if head_dim == 128:
        return [Tile(32, 32, 8, 1, passes), *wide]
    return [Tile(16, 32, 8, 1, passes, 64), Tile(16, 16, 8, 1, passes, 64), *wide]


def _paged(op: str, head_dim: int) -> list[Tile]:
    if op == "paged_attention_decode":
        if head_dim <= 64:
            return [Tile(16, 128, 4, 4), Tile(16, 64, 4, 4), Tile(16, 64, 4, 6)]
        if head_dim == 128:
            return [Tile(16, 64, 4, 4), Tile(16, 128, 4, 4), Tile(16, 64, 4, 6), Tile(16, 32, 4, 4), Tile(16, 64, 8, 4)]
        return [Tile(16, 32, 4, 4), Tile(16, 32, 4, 6), Tile(16, 64, 8, 4)]
    if head_dim <= 64:
        return [Tile(64, 64, 4, 3), Tile(128, 64, 8, 3)]
    if head_dim == 128:
        return [Tile(64, 32, 4, 2), Tile(64, 64, 4, 2), Tile(128, 64, 8, 2)]
    return [Tile(64, 16, 8, 2), Tile(64, 32, 8, 2), Tile(64, 16, 8, 1), Tile(64, 16, 4, 1)]


def _ieee(op: str, head_dim: int) -> list[Tile]:
    """Float32 products run without tensor cores and hold their operands in registers: small tiles."""
    if op.startswith("flash_attention_jvp_backward"):
        passes = 2 if op.endswith("_q") else 3
        return [Tile(16, 16, 8, 1, passes, 64 if head_dim < 256 else 32), Tile(16, 16, 8, 1, passes, 16)]
    if op == "flash_attention_jvp" and head_dim >= 128:
        return [
            Tile(16, 16, 8, 1, 1, 64),
            Tile(16, 16, 8, 1, 1, 32),
            Tile(16, 16, 8, 1, 1, 16),
            Tile(32, 32, 8, 1, 1, 64),
        ]
    if op.startswith("paged_attention") or head_dim == 256:
        return [Tile(16, 16, 4, 1), Tile(16, 16, 8, 1)]
    return [Tile(32, 32, 8, 1), Tile(16, 16, 4, 1), Tile(16, 16, 8, 1)]


@dataclass(frozen=True)
class Verdict:
    """What the compiled code of a tile says: why it cannot run at all, if so, and how often it spills registers."""

    unusable: str | None
    spills: int

    @property
    def clean(self) -> bool:
        return self.unusable is None and self.spills == 0


def judge(op: str, head_dim: int, dtype: torch.dtype, tile: Tile, architecture: int) -> Verdict:
    """The verdict of a process of its own: some float32 tiles abort LLVM (3.9.0's SLP vectoriser), and us with it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(compile_and_judge, op, head_dim, dtype, tile, architecture).result()
        except BrokenProcessPool:
            return Verdict("the compiler aborts", 0)


def compile_and_judge(op: str, head_dim: int, dtype: torch.dtype, tile: Tile, architecture: int) -> Verdict:
    spills = 0
    # What is slow anyway may use all that an A100 has.
    slow = aot_cases.may_spill(op, head_dim, dtype.itemsize * 8, architecture)
    limit_bytes = (aot.SHARED_PER_PROGRAM_BYTES if slow else SHARED_LIMIT_BYTES)[architecture]
    for variant in aot_cases.variants(op, architecture):
        for launch in aot_cases.launches(op, head_dim, dtype, variant, tile, architecture):
            name = launch.kernel.fn.__name__
            try:
                binary = aot.compile_launch(launch, architecture)
            except Exception as error:  # noqa: BLE001 - whatever the compiler says, the tile is out
                return Verdict(f"{name} does not compile: {type(error).__name__}", spills)
            if binary.shared_bytes > limit_bytes:
                return Verdict(f"{name} needs {binary.shared_bytes} bytes of shared memory", spills)
            if aot_cases.must_use_wgmma(op, launch, dtype, architecture) and not binary.instructions["HGMMA"]:
                return Verdict(f"{name} has no wgmma", spills)
            spills += binary.spill_instructions
    return Verdict(None, spills)


def measured_ms(op: str, head_dim: int, dtype: torch.dtype, tile: Tile, architecture: int) -> float:
    """Median time of the op's own launches on this machine's GPU, dense."""
    run = aot_cases.runner(op, head_dim, dtype, tile, architecture, torch.device("cuda"))
    for _ in range(WARMUPS):
        run()
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def choose(op: str, head_dim: int, dtype: torch.dtype, architecture: int, measure: bool) -> Tile:
    """The first clean candidate, or the fastest clean one where times can be taken.

    Where `aot_cases.may_spill` says so, the candidate that spills least will do.
    """
    verdicts: dict[Tile, Verdict] = {}
    for tile in candidates(op, head_dim, dtype.itemsize * 8, architecture):
        verdicts[tile] = judge(op, head_dim, dtype, tile, architecture)
        if not verdicts[tile].clean:
            print(f"    {tile}: {verdicts[tile]}", flush=True)
        elif not measure:
            return tile
    clean = [tile for tile, verdict in verdicts.items() if verdict.clean]
    if clean:
        times_ms = {tile: measured_ms(op, head_dim, dtype, tile, architecture) for tile in clean}
        print("".join(f"    {tile}: {elapsed:.3f} ms\n" for tile, elapsed in times_ms.items()), end="", flush=True)
        return min(clean, key=times_ms.__getitem__)
    usable = [tile for tile, verdict in verdicts.items() if verdict.unusable is None]
    if not usable or not aot_cases.may_spill(op, head_dim, dtype.itemsize * 8, architecture):
        raise SystemExit(f"no clean tile for {op}, head dim {head_dim}, {dtype}, sm_{architecture}")
    return min(usable, key=lambda tile: verdicts[tile].spills)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", type=int, choices=(80, 90), default=90)
    parser.add_argument("--op", choices=aot_cases.OPS, action="append", help="only these (default: all)")
    parser.add_argument("--head-dim", type=int, choices=HEAD_DIMS, action="append", help="only these head dims")
    parser.add_argument("--bits", type=int, choices=(16, 32), action="append", help="only these element widths")
    parser.add_argument("--static", action="store_true", help="do not measure, even where a GPU is present")
    options = parser.parse_args()
    path = TABLES / f"sm_{options.architecture}.json"
    document = json.loads(path.read_text()) if path.exists() else {"measured_on": None, "tiles": {}}
    measure = not options.static and torch.cuda.is_available()
    if measure:
        major, minor = torch.cuda.get_device_capability()
        measure = (90 if 10 * major + minor >= 90 else 80) == options.architecture
    for op in options.op or aot_cases.OPS:
        for bits in options.bits or (16, 32):
            for head_dim in options.head_dim or HEAD_DIMS:
                start = time.perf_counter()
                dtype = torch.bfloat16 if bits == 16 else torch.float32
                tile = choose(op, head_dim, dtype, options.architecture, measure and bits == 16)
                document["tiles"][tile_key(op, head_dim, bits)] = asdict(tile)
                print(f"{tile_key(op, head_dim, bits)}: {tile} ({time.perf_counter() - start:.0f} s)", flush=True)
                document["measured_on"] = torch.cuda.get_device_name() if measure else document["measured_on"]
                path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
