"""Compile the very launches that the ops make, for a GPU that need not be there, and read the machine code.

`record` runs a launcher on meta tensors and keeps what it would have launched, with the same arguments;
`compile_launch` specialises those as Triton's own launch does (ones become constants, multiples of 16 and aligned
pointers are hinted). Needs Triton on Linux, without TRITON_INTERPRET.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int8: "*i8",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int32: "*i32",
}
# What one streaming multiprocessor holds, by compute capability.
REGISTERS_PER_SM, THREADS_PER_SM = 65536, 2048
SHARED_PER_SM_BYTES = {80: 164 * 1024, 90: 228 * 1024}
SHARED_PER_PROGRAM_BYTES = {80: 163 * 1024, 90: 227 * 1024}


@dataclass(frozen=True)
class Launch:
    """One recorded launch: the kernel, its programs, and all its arguments by name."""

    kernel: JITFunction[Any]
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]


@dataclass(frozen=True)
class Binary:
    """What the compiler made of a launch for one architecture."""

    name: str
    architecture: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    num_warps: int
    instructions: Counter[str]  # machine instructions by opcode, e.g. HGMMA (wgmma), HMMA (mma), STL (spill store)

    @property
    def spill_instructions(self) -> int:
        return self.instructions["STL"] + self.instructions["LDL"]

    @property
    def programs_per_sm(self) -> int:
        """How many programs one multiprocessor holds at once, by registers, threads and shared memory."""
        threads = 32 * self.num_warps
        registers = -(-self.registers // 8) * 8 * threads
        limits = [REGISTERS_PER_SM // registers, THREADS_PER_SM // threads, 32]
        shared = self.shared_bytes + 1024  # the driver keeps 1 KiB a program
        return min(*limits, SHARED_PER_SM_BYTES[self.architecture] // shared)

    @property
    def occupancy(self) -> float:
        """Resident warps over the most that a multiprocessor holds."""
        return self.programs_per_sm * self.num_warps * 32 / THREADS_PER_SM


def record(launcher: Callable[[], object]) -> list[Launch]:
    """Every kernel that `launcher` would launch. Nothing runs."""
    launches: list[Launch] = []

    def keep(kernel: JITFunction[Any], *args: Any, grid: tuple[int, ...], warmup: bool, **named: Any) -> None:
        del warmup
        options = {name: named.pop(name) for name in OPTIONS if name in named}
        launches.append(Launch(kernel, grid, dict(zip(kernel.arg_names, args, strict=False)) | named, options))

    with mock.patch.object(JITFunction, "run", keep):
        launcher()
    return launches


def compile_launch(launch: Launch, architecture: int) -> Binary:
    """Compile for sm_80 or sm_90 and read registers, stack, shared memory and instructions from the result."""
    compiled = triton.compile(_source(launch), target=GPUTarget("cuda", architecture, 32), options={**launch.options})
    usage, code = _inspect(compiled.asm["cubin"])
    return Binary(
        name=launch.kernel.fn.__name__,
        architecture=architecture,
        registers=int(re.search(r"REG:(\d+)", usage).group(1)),  # type: ignore[union-attr]
        stack_bytes=int(re.search(r"STACK:(\d+)", usage).group(1)),  # type: ignore[union-attr]
        shared_bytes=compiled.metadata.shared,
        num_warps=compiled.metadata.num_warps,
        instructions=Counter(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)", code, re.MULTILINE)),
    )


def _source(launch: Launch) -> ASTSource:
    signature: dict[str, str] = {}
    constants: dict[str, object] = {}
    hints: dict[tuple[int], list[list[object]]] = {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            hints[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                hints[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32"
    return ASTSource(launch.kernel, signature, constants, hints)


def _inspect(cubin: bytes) -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return _run("-res-usage", path), _run("-sass", path)


def _run(flag: str, path: Path) -> str:
    command = [_cuobjdump(), flag, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@cache
def _cuobjdump() -> str:
    """The one that Triton's wheel carries."""
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
