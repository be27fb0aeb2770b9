"""Measure the attention kernels on a CUDA machine: `python -m benchmarks.kernels [--minutes 7.5] [--quick]`.

Needs torch, triton and numpy only. Agreement is checked first, and nothing is reported where results disagree. Prints
tables and writes benchmarks/results/kernels-DEVICE.json and .md. Without a CUDA device it says "not measured" and
where the static figures are. Rows that the time did not reach are listed as such, never guessed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
BATCH_HEADS, TOKENS, HEAD_DIMS = (1, 16, 64), (256, 512, 1024, 2048, 4096, 8192), (64, 128)
# Rows that carry a target come first, so that a short run still has them.
TARGET_ROWS = ((64, 4096, 64), (64, 4096, 128), *((1, tokens, 64) for tokens in TOKENS[:5]))
PUBLISHED_MS = dict(zip(TOKENS[:5], (0.06, 0.08, 0.11, 0.16, 0.28), strict=True))  # cloud-inference-platform, one head
FLOPS_PER_PAIR = {
    "forward": 4,
    "jvp": 12,
    "jvp_q_only": 8,
    "jvp_backward": 30,
}  # times N² D; the least that the maths needs
# Relative error in the 2-norm against float32 math on the same bfloat16 inputs.
AGREEMENT = 2e-2
MATH_MATRICES = 8  # N x N matrices that the math path holds at its peak, roughly: what does not fit is left out


@dataclass
class Report:
    """What was measured, row by row, and what was left out and why."""

    machine: dict[str, Any]
    deadline_s: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def measure(self, what: dict[str, Any], call: Callable[[], object] | None, work: dict[str, float]) -> None:
        """One row: the timing with TFLOP/s or bytes/s and shares of the machine's own rates."""
        from benchmarks.kernels_measure import timed

        label = " ".join(f"{key}={value}" for key, value in what.items())
        if call is None:
            self.left_out.append(f"{label}: not installed")
            return
        if time.monotonic() > self.deadline_s:
            self.left_out.append(f"{label}: out of time")
            return
        try:
            timing = timed(call)
        except Exception as error:  # noqa: BLE001 - a contender that fails is reported, and the rest goes on
            self.left_out.append(f"{label}: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
            torch.cuda.empty_cache()
            return
        row = what | asdict(timing)
        if "flops" in work:
            row["tflops"] = work["flops"] / timing.median_ms / 1e9
            row["share_of_matmul"] = row["tflops"] / self.machine["matmul_tflops"]
        if "bytes" in work:
            row["bytes_per_s"] = work["bytes"] / timing.median_ms * 1e3
            row["share_of_copy"] = row["bytes_per_s"] / self.machine["copy_bytes_per_s"]
        self.rows.append(row)
        print(f"{label}: {timing.median_ms:.4f} ms (p95 {timing.p95_ms:.4f})", flush=True)


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def check_agreement() -> dict[str, float]:
    """Every op that is measured, against float32 math; SystemExit where one is off."""
    from benchmarks import kernels_contenders as contenders
    from kernels.flash_attention import flash_attention
    from kernels.flash_attention_jvp import flash_attention_jvp

    errors: dict[str, float] = {}
    for head_dim in HEAD_DIMS:
        for causal in (False, True):
            primals, tangents = ([random(1, 4, 777, head_dim) for _ in range(3)] for _ in range(2))
            wide = [tuple(each.float().requires_grad_() for each in group) for group in (primals, tangents)]
            leaves = [each.detach().requires_grad_() for each in (*primals, *tangents)]
            expected = contenders.math_jvp(*wide, causal)
            found = flash_attention_jvp(*leaves, causal=causal)[:2]
            gradients = [random(1, 4, 777, head_dim) for _ in range(2)]
            wanted = torch.autograd.grad(expected, (*wide[0], *wide[1]), [each.float() for each in gradients])
            given = torch.autograd.grad(found, leaves, gradients)
            name = f"D={head_dim} causal={causal}"
            errors[f"forward {name}"] = relative_error(flash_attention(*primals, causal=causal), expected[0])
            errors |= {
                f"jvp {name} result {i}": relative_error(*pair)
                for i, pair in enumerate(zip(found, expected, strict=True))
            }
            errors |= {
                f"jvp backward {name} gradient {i}": relative_error(*pair)
                for i, pair in enumerate(zip(given, wanted, strict=True))
            }
    for cache_dtype in (torch.bfloat16, torch.int8):
        call, reference, _ = paged_decode(3, 1000, 8, 2, 128, cache_dtype)
        errors[f"paged decode {cache_dtype}"] = relative_error(call(), reference())
    wrong = {name: error for name, error in errors.items() if not error <= AGREEMENT}
    if wrong:
        raise SystemExit(f"results disagree, so nothing is reported: {json.dumps(wrong, indent=1)}")
    return errors


def paged_decode(
    sequences: int, tokens: int, heads: int, kv_heads: int, head_dim: int, cache_dtype: torch.dtype
) -> tuple[Callable[[], Any], Callable[[], Any], int]:
    """(the call, the reference's call, bytes of keys and values that it has to read)."""
    from kernels.paged_attention import PagedBatch, paged_attention, reference

    block_size = 16
    blocks = -(-tokens // block_size)
    order = torch.randperm(sequences * blocks).view(sequences, blocks).tolist()
    batch = PagedBatch.build(
        order, [tokens] * sequences, block_size=block_size, cache_blocks=sequences * blocks, device="cuda"
    )
    q = random(sequences, heads, head_dim)
    shape = (sequences * blocks, block_size, kv_heads, head_dim)
    scales = None
    if cache_dtype == torch.int8:
        k, v = (torch.randint(-127, 128, shape, dtype=torch.int8, device="cuda") for _ in range(2))
        scales = torch.full(shape[:3], 0.02, device="cuda")
    else:
        k, v = (random(*shape, dtype=cache_dtype) for _ in range(2))
    read = 2 * sequences * tokens * kv_heads * (head_dim * k.element_size() + (4 if scales is not None else 0))
    scale = head_dim**-0.5
    return (
        lambda: paged_attention(q, k, v, batch, k_scales=scales, v_scales=scales),
        lambda: reference.forward(q, k, v, scales, scales, batch, scale)[0],
        read,
    )


def math_fits(batch_heads: int, tokens: int, element_bytes: int) -> bool:
    free_bytes, _ = torch.cuda.mem_get_info()
    return batch_heads * tokens**2 * element_bytes * MATH_MATRICES < 0.8 * free_bytes


def measure_jvp(report: Report, batch_heads: int, tokens: int, head_dim: int, causal: bool, dtype: torch.dtype) -> None:
    """Forward with tangent: all contenders."""
    from benchmarks import kernels_contenders as contenders

    primals, tangents = (
        tuple(random(1, batch_heads, tokens, head_dim, dtype=dtype) for _ in range(3)) for _ in range(2)
    )
    pairs = batch_heads * tokens**2 * head_dim / (2 if causal else 1)
    for name, call in contenders.jvp_forward(primals, tangents, causal).items():
        what = _row("jvp forward", name, batch_heads, tokens, head_dim, causal, dtype)
        if name.startswith("math") and not math_fits(batch_heads, tokens, 4):
            report.left_out.append(f"{what}: its matrices do not fit")
            continue
        per_pair = FLOPS_PER_PAIR["jvp_q_only" if "only q" in name else "jvp"]
        report.measure(what, call, {"flops": per_pair * pairs})


def measure_jvp_backward(report: Report, batch_heads: int, tokens: int, head_dim: int, causal: bool) -> None:
    from benchmarks import kernels_contenders as contenders

    primals, tangents = (tuple(random(1, batch_heads, tokens, head_dim) for _ in range(3)) for _ in range(2))
    gradients = tuple(random(1, batch_heads, tokens, head_dim) for _ in range(2))
    pairs = batch_heads * tokens**2 * head_dim / (2 if causal else 1)
    for name, prepare in contenders.jvp_backward(primals, tangents, causal, gradients).items():
        what = _row("jvp backward", name, batch_heads, tokens, head_dim, causal, torch.bfloat16)
        if name == "math" and not math_fits(batch_heads, tokens, 8):
            report.left_out.append(f"{what}: its matrices do not fit")
            continue
        torch.cuda.synchronize()
        base_bytes = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        try:
            call = prepare()
            call()
        except torch.OutOfMemoryError:
            report.left_out.append(f"{what}: out of memory")
            torch.cuda.empty_cache()
            continue
        torch.cuda.synchronize()
        # What training holds: the forward's saved tensors and the backward's own peak.
        held = {"forward_and_backward_peak_bytes": torch.cuda.max_memory_allocated() - base_bytes}
        report.measure(what | held, call, {"flops": FLOPS_PER_PAIR["jvp_backward"] * pairs})
        del call


def measure_forward(report: Report, batch_heads: int, tokens: int, head_dim: int, causal: bool) -> None:
    from benchmarks import kernels_contenders as contenders

    q, k, v = (random(1, batch_heads, tokens, head_dim) for _ in range(3))
    pairs = batch_heads * tokens**2 * head_dim / (2 if causal else 1)
    for name, call in contenders.plain_forward(q, k, v, causal).items():
        if name == "FlexAttention" and (batch_heads, tokens) != (64, 4096):
            continue  # each shape costs a compilation
        what = _row("forward", name, batch_heads, tokens, head_dim, causal, torch.bfloat16)
        report.measure(what, call, {"flops": FLOPS_PER_PAIR["forward"] * pairs})


def measure_paged(report: Report) -> None:
    cases = ((64, 4096, 64, 8), (64, 4096, 8, 8), (1, 32768, 64, 8), (8, 8192, 64, 8))
    for sequences, tokens, heads, kv_heads in cases:
        for cache_dtype in (torch.bfloat16, torch.int8):  # float8 reads the same bytes as int8
            call, _, read = paged_decode(sequences, tokens, heads, kv_heads, 128, cache_dtype)
            what = {
                "op": "paged decode", "contender": "headway", "sequences": sequences, "tokens": tokens,
                "heads": heads, "kv_heads": kv_heads, "D": 128, "cache": str(cache_dtype),
            }  # fmt: skip
            report.measure(what, call, {"bytes": read})


def _row(
    op: str, contender: str, batch_heads: int, tokens: int, head_dim: int, causal: bool, dtype: torch.dtype
) -> dict[str, Any]:
    return {
        "op": op, "contender": contender, "BH": batch_heads, "N": tokens, "D": head_dim, "causal": causal,
        "dtype": str(dtype).removeprefix("torch."),
    }  # fmt: skip


def measure_all(report: Report, quick: bool) -> None:
    """Targets first, then the whole grid, then causal."""
    grid = [(bh, n, d) for d in HEAD_DIMS for bh in BATCH_HEADS for n in TOKENS]
    rest = [] if quick else [row for row in grid if row not in TARGET_ROWS]
    for batch_heads, tokens, head_dim in TARGET_ROWS:
        # The one-head rows are compared with a table of fp16 figures.
        measure_jvp(report, batch_heads, tokens, head_dim, False, torch.float16 if batch_heads == 1 else torch.bfloat16)
    for head_dim in HEAD_DIMS:
        for batch_heads in (16, 64):
            measure_jvp_backward(report, batch_heads, 4096, head_dim, False)
        for causal in (False, True):
            measure_forward(report, 64, 4096, head_dim, causal)
    measure_paged(report)
    for batch_heads, tokens, head_dim in rest:
        measure_jvp(report, batch_heads, tokens, head_dim, False, torch.bfloat16)
    if not quick:
        for head_dim in HEAD_DIMS:
            measure_jvp(report, 64, 4096, head_dim, True, torch.bfloat16)
            measure_jvp_backward(report, 16, 4096, head_dim, True)
    for batch_heads, tokens, head_dim in rest:
        measure_forward(report, batch_heads, tokens, head_dim, False)
    for batch_heads, tokens, head_dim in rest:
        if tokens in (1024, 2048):
            measure_jvp_backward(report, batch_heads, tokens, head_dim, False)


def markdown(report: Report) -> str:
    lines = [f"Measured on {report.machine['name']}: " + json.dumps(report.machine), ""]
    lines += [
        "| op | what | contender | median ms | p95 ms | TFLOP/s | share | peak MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    described = ("BH", "sequences", "N", "tokens", "heads", "kv_heads", "D", "causal", "dtype", "cache")
    for row in report.rows:
        what = " ".join(f"{key}={row[key]}" for key in described if key in row)
        share = row.get("share_of_matmul", row.get("share_of_copy", 0.0))
        tflops = f"{row['tflops']:.0f}" if "tflops" in row else ""
        peak = row.get("forward_and_backward_peak_bytes", row["peak_bytes"]) / 2**20
        lines.append(
            f"| {row['op']} | {what} | {row['contender']} | {row['median_ms']:.4f} | {row['p95_ms']:.4f} | {tflops} "
            f"| {share:.0%} | {peak:.0f} |"
        )
    return "\n".join([*lines, "", *(f"- left out: {line}" for line in report.left_out)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=7.5, help="stop starting new rows after this long")
    parser.add_argument("--quick", action="store_true", help="only the rows that carry a target")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("not measured: no CUDA device. Static figures: benchmarks/results/kernels-static.md")
        return
    from benchmarks.kernels_measure import machine

    deadline_s = time.monotonic() + 60 * options.minutes
    errors = check_agreement()
    print("agreement: largest relative error " + f"{max(errors.values()):.1e}", flush=True)
    report = Report(asdict(machine()), deadline_s)
    measure_all(report, options.quick)
    stem = "kernels-" + report.machine["name"].lower().replace(" ", "-")
    document = {
        "machine": report.machine, "agreement": errors, "published_ms": PUBLISHED_MS, "rows": report.rows,
        "left_out": report.left_out,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n")
    (RESULTS / f"{stem}.md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
