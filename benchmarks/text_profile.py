"""Where a step of the text engine spends its time: `python -m benchmarks.text_profile [--weights int8]`, half a minute.

Forward passes over the random checkpoint of `benchmarks.text`: decode steps at 160 tokens of context, and prompts. The
kernels are timed where the pass calls them; `rest` is what lies between. The quickest of several passes, because a busy
machine only adds. Writes `benchmarks/results/text-profile.json`.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.figures import write
from benchmarks.text_workloads import make_checkpoint
from services.text_worker.backend import Span
from services.text_worker.cpu import attention, attention_amx, rows
from services.text_worker.cpu.compiled import share_torch_threads
from services.text_worker.cpu.linear import Bf16Matrix, Int8Matrix, LibraryMatrix, WeightKind
from services.text_worker.cpu.model import CpuModel
from services.text_worker.kv.pages import Pages
from services.text_worker.kv.store import blocks_of
from services.text_worker.model.families import load_architecture

console = Console(width=140)
CONTEXT, MOST_TOKENS, SEQUENCES = 160, 512, 32
PASSES = 12
KERNELS: tuple[tuple[str, Any, str], ...] = (
    ("products", Int8Matrix, "product"),
    ("products", Bf16Matrix, "product"),
    ("products", LibraryMatrix, "product"),
    ("attention", attention, "attend"),
    ("attention", attention_amx, "attend"),
    ("rotation", attention, "turn_and_store"),
    ("gates", rows, "gate"),
    ("norms", rows, "add_norm"),
    ("norms", rows, "norm"),
    ("packed rows", rows, "pack_rows"),
)
KINDS: dict[str, WeightKind] = {"fp32": "fp32", "bf16": "bf16", "int8": "int8"}


def cases() -> dict[str, list[Span]]:
    """Spans of each pass, over tables of blocks that lie one behind the other."""
    each = blocks_of(MOST_TOKENS)
    tables = [range(line * each, (line + 1) * each) for line in range(SEQUENCES)]

    def decode(count: int) -> list[Span]:
        return [Span(table, CONTEXT - 1, (5,)) for table in tables[:count]]

    def prompts(count: int, tokens: int) -> list[Span]:
        return [Span(table, 0, tuple(range(5, 5 + tokens))) for table in tables[:count]]

    decodes = {f"decode, batch {count}": decode(count) for count in (1, 8, 32)}
    return {**decodes, "prompts, 4 x 128": prompts(4, 128), "prompt, 1 x 416": prompts(1, 416)}


@contextmanager
def timed(spent_s: Counter[str]) -> Iterator[None]:
    """Adds to `spent_s` what each kind of kernel takes inside the block."""

    def timing(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            start_s = time.perf_counter()
            result = kernel(*arguments)
            spent_s[name] += time.perf_counter() - start_s
            return result

        return run

    patches = [patch.object(owner, name, timing(kind, getattr(owner, name))) for kind, owner, name in KERNELS]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


def measure(model: CpuModel, pages: Pages, spans: Sequence[Span]) -> dict[str, float]:
    """ms of the quickest pass, whole and by kind of kernel."""
    model.forward(spans, pages)
    quickest: dict[str, float] = {}
    for _ in range(PASSES):
        spent_s: Counter[str] = Counter()
        with timed(spent_s):
            start_s = time.perf_counter()
            model.forward(spans, pages)
            whole_s = time.perf_counter() - start_s
        if not quickest or 1000 * whole_s < quickest["whole"]:
            parts = {name: 1000 * seconds for name, seconds in spent_s.items()}
            quickest = {"whole": 1000 * whole_s, **parts, "rest": 1000 * (whole_s - spent_s.total())}
    return quickest


def main(
    weights: Annotated[str, typer.Option(help=f"{', '.join(KINDS)}.")] = "int8",
    threads: Annotated[int, typer.Option(help="Threads of the engine.")] = 2,
    checkpoint: Annotated[Path | None, typer.Option(help="Where the random checkpoint is kept.")] = None,
) -> None:
    """Measures, shows and writes."""
    if weights not in KINDS:
        raise typer.BadParameter(f"must be one of {', '.join(KINDS)}", param_hint="--weights")
    share_torch_threads()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="headway-text-") as spare:
        folder = make_checkpoint(checkpoint or Path(spare) / "checkpoint")
        architecture = load_architecture(folder)
        model = CpuModel.load(folder, architecture, KINDS[weights])
        pages = Pages(architecture, SEQUENCES * blocks_of(MOST_TOKENS), model.element)
        found = {name: measure(model, pages, spans) for name, spans in cases().items()}
    names = ["whole", *dict.fromkeys(kind for kind, _, _ in KERNELS), "rest"]
    table = Table(title=f"ms of a pass, {weights}, {threads} threads")
    for heading in ("", *names):
        table.add_column(heading)
    for case, parts in found.items():
        table.add_row(case, *(f"{parts.get(name, 0.0):.1f}" for name in names))
    console.print(table)
    console.print(f"written to {write('text-profile', {'weights': weights, 'threads': threads, 'passes': found})}")


if __name__ == "__main__":
    typer.run(main)
