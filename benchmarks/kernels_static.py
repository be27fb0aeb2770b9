"""What the compiler makes of every configuration, without a GPU: `python -m benchmarks.kernels_static [--publish]`.

Registers, shared memory, occupancy and instruction mix per kernel, from the machine code of the launches that the ops
make.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import triton

from kernels import aot, aot_cases
from kernels.tiles import lookup

RESULTS = Path(__file__).parent / "results"
HEAD_DIMS = (16, 32, 64, 128, 256)
TENSOR_CORE, PLAIN = ("HGMMA", "HMMA"), ("FFMA", "FMUL", "FADD", "MUFU", "LDS", "STS", "LDGSTS", "LDG", "UTMALDG")


def rows_of(op: str, head_dim: int, bits: int, architecture: int, variants: str) -> list[dict[str, object]]:
    """One row for each kernel that the op launches, for the plainest and the most demanding call."""
    dtype = torch.bfloat16 if bits == 16 else torch.float32
    tile = lookup(op, head_dim, bits, architecture)
    plain = aot_cases.variants(op, architecture)
    chosen = {"all": plain, "last": plain[-1:], "one-token": (aot_cases.ONE_TOKEN,)}[variants]
    rows = []
    for variant in chosen:
        for launch in aot_cases.launches(op, head_dim, dtype, variant, tile, architecture):
            binary = aot.compile_launch(launch, architecture)
            gradients = [name[5:].lower() for name, on in launch.arguments.items() if name.startswith("GRAD_") and on]
            rows.append(
                {
                    "op": op,
                    "kernel": binary.name + (f"({','.join(gradients)})" if gradients else ""),
                    "architecture": architecture,
                    "head_dim": head_dim,
                    "bits": bits,
                    "call": _describe(variant),
                    "tile": f"{tile.block_m}x{tile.block_n} w{tile.num_warps} s{tile.num_stages}",
                    "registers": binary.registers,
                    "stack_bytes": binary.stack_bytes,
                    "spills": binary.spill_instructions,
                    "may_spill": aot_cases.may_spill(op, head_dim, bits, architecture, variant),
                    "shared_bytes": binary.shared_bytes,
                    "programs_per_sm": binary.programs_per_sm,
                    "occupancy": binary.occupancy,
                    "wgmma": binary.instructions["HGMMA"],
                    "must_use_wgmma": aot_cases.must_use_wgmma(op, launch, dtype, architecture),
                    "instructions": {
                        name: binary.instructions[name] for name in TENSOR_CORE + PLAIN if binary.instructions[name]
                    },
                    "instructions_in_all": binary.instructions.total(),
                }
            )
    return rows


def _describe(variant: aot_cases.Variant) -> str:
    if variant.cache is not None:
        return str(variant.cache).removeprefix("torch.") + " cache"
    return ("causal " if variant.causal else "full ") + ("ragged" if variant.ragged else "dense")


def markdown(rows: list[dict[str, object]]) -> str:
    """The table of kernels/README.md and benchmarks/results/kernels-static.md."""
    lines = [
        "| op | kernel | sm | D | bits | call | tile | registers | spills | KiB | programs/SM | occupancy | mix |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mix = ", ".join(f"{name} {count}" for name, count in row["instructions"].items())
        lines.append(
            f"| {row['op']} | {row['kernel']} | {row['architecture']} | {row['head_dim']} | {row['bits']} "
            f"| {row['call']} | {row['tile']} | {row['registers']} | {row['spills']} "
            f"| {row['shared_bytes'] / 1024:.0f} | {row['programs_per_sm']} | {row['occupancy']:.0%} | {mix} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", type=int, choices=(80, 90), action="append")
    parser.add_argument("--op", choices=aot_cases.OPS, action="append")
    parser.add_argument("--head-dim", type=int, choices=HEAD_DIMS, action="append")
    parser.add_argument("--bits", type=int, choices=(16, 32), action="append")
    parser.add_argument(
        "--variants", choices=("all", "last", "one-token"), default="all", help="last: the most demanding"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--publish", action="store_true", help="write benchmarks/results/kernels-static.{json,md}")
    options = parser.parse_args()
    rows = []
    for architecture in options.architecture or (90, 80):
        for op in options.op or aot_cases.OPS:
            for head_dim in options.head_dim or HEAD_DIMS:
                for bits in options.bits or (16, 32):
                    rows += rows_of(op, head_dim, bits, architecture, options.variants)
                    print(f"{op} d{head_dim} {bits}bit sm_{architecture}", file=sys.stderr, flush=True)
    print(json.dumps(rows, indent=1) if options.json else markdown(rows))
    if options.publish:
        compiler = f"triton {triton.__version__}"
        (RESULTS / "kernels-static.json").write_text(json.dumps({"compiler": compiler, "rows": rows}, indent=1) + "\n")
        (RESULTS / "kernels-static.md").write_text(f"Compiled by {compiler}; nothing was run.\n\n{markdown(rows)}\n")


if __name__ == "__main__":
    main()
