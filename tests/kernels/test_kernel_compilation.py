"""Ahead-of-time compilation for GPUs that are not here, in processes of their own, without the interpreter."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARED_LIMIT_BYTES = {80: 99 * 1024, 90: 227 * 1024}
ALL_SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is for Linux")


def run(*arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def check(rows: list[dict[str, object]]) -> None:
    assert rows
    for row in rows:
        if not row["may_spill"]:
            assert row["spills"] == 0 and row["stack_bytes"] == 0, row
        # The sm_80 table serves chips with 99 KiB too, but for what is slow anyway.
        limit_bytes = (ALL_SHARED_BYTES if row["may_spill"] else SHARED_LIMIT_BYTES)[row["architecture"]]
        assert row["shared_bytes"] <= limit_bytes, row
        if row["must_use_wgmma"]:
            assert row["wgmma"] > 0, row


@pytest.mark.parametrize("architecture", [80, 90])
def test_a_sample_of_every_op_compiles_clean(architecture: int) -> None:
    ops = ["flash_attention", "flash_attention_jvp", "flash_attention_jvp_backward_q", "paged_attention_decode"]
    ops += ["flash_attention_jvp_backward_kv"] if architecture == 90 else []
    names = [argument for op in ops for argument in ("--op", op)]
    options = ["--architecture", str(architecture), "--head-dim", "64", "--bits", "16", "--variants", "last"]
    rows = json.loads(run("-m", "benchmarks.kernels_static", *options, *names, "--json"))
    assert {row["op"] for row in rows} == set(ops)
    check(rows)


def test_a_single_token_compiles_though_its_sizes_become_constants() -> None:
    options = ["--op", "flash_attention_jvp", "--architecture", "90", "--head-dim", "64", "--bits", "16"]
    check(json.loads(run("-m", "benchmarks.kernels_static", *options, "--variants", "one-token", "--json")))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("variants", ["all", "one-token"])
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("head_dim", [16, 32, 64, 128, 256])
def test_every_configuration_of_the_tables_compiles_clean(architecture: int, head_dim: int, variants: str) -> None:
    options = ["--architecture", str(architecture), "--head-dim", str(head_dim), "--variants", variants]
    check(json.loads(run("-m", "benchmarks.kernels_static", *options, "--json")))


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # any import of it fails
import torch
from kernels.flash_attention import flash_attention
from kernels.flash_attention_jvp import flash_attention_jvp
from kernels.paged_attention import PagedBatch, paged_attention
q, cache = torch.randn(1, 2, 3, 16), torch.randn(2, 16, 2, 16)
flash_attention_jvp(q, q, q, q)
paged_attention(torch.randn(1, 2, 16), cache, cache, PagedBatch.build([[1]], [5], block_size=16, cache_blocks=2))
print(flash_attention(q, q, q).shape)
"""


def test_importing_the_ops_needs_neither_triton_nor_a_gpu() -> None:
    assert "torch.Size([1, 2, 3, 16])" in run("-c", WITHOUT_TRITON)


def test_the_tables_name_every_op_and_head_dim() -> None:
    ops = [
        "flash_attention",
        "flash_attention_jvp",
        "flash_attention_jvp_backward_q",
        "flash_attention_jvp_backward_kv",
    ]
    ops += ["paged_attention_decode", "paged_attention_prefill"]
    expected = {f"{op}/d{d}/{bits}bit" for op in ops for d in (16, 32, 64, 128, 256) for bits in (16, 32)}
    for architecture in (80, 90):
        document = json.loads((ROOT / "kernels" / "tables" / f"sm_{architecture}.json").read_text())
        assert set(document["tiles"]) == expected
