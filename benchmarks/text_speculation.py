"""What speculation by prompt lookup brings: `python -m benchmarks.text_speculation`, about 3 minutes; `--quick` in one.

The same requests without drafts, with all that are found, and with those that the cost model wants, in turn, on a
trained model: random weights repeat themselves more than any text does. Nothing is reported when a token differs.
"""

import asyncio
import statistics
from collections.abc import Sequence as Several
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.figures import write
from benchmarks.text_engine import Engine, Run
from services.text_worker.config import default_model
from services.text_worker.cpu.compiled import share_torch_threads
from services.text_worker.model.families import load_architecture
from services.text_worker.speculation import Mode
from services.text_worker.tokenizer import TextTokenizer, load_tokenizer

MODES: tuple[Mode, ...] = ("off", "lookup", "auto")
NEW_TOKENS, PROMPT_TOKENS = 128, 96
console = Console(width=120)


def prompts_of(tokenizer: TextTokenizer, count: int) -> dict[str, list[tuple[int, ...]]]:
    """Prompts that hold something twice already, and prompts that do not, from this repository's documents."""
    text = "\n\n".join(path.read_text("utf-8") for path in sorted(Path("docs").rglob("*.md")))
    tokens = tokenizer.encode(text)
    pieces = [tuple(tokens[i * PROMPT_TOKENS : (i + 1) * PROMPT_TOKENS]) for i in range(count)]
    half = PROMPT_TOKENS // 2
    return {"said twice": [piece[:half] * 2 for piece in pieces], "said once": pieces}


async def measure(folder: Path, weights: Any, batches: Several[int], rounds: int) -> list[dict[str, Any]]:
    """A row for each kind of prompt, batch and mode: medians over the rounds, in which the modes take turns."""
    prompts = prompts_of(load_tokenizer(folder, load_architecture(folder)), max(batches))
    rows = []
    async with AsyncExitStack() as running:
        engines = {
            mode: await running.enter_async_context(Engine(folder, weights, invariant=True, speculate=mode).running())
            for mode in MODES
        }
        for kind, some in prompts.items():
            for batch in batches:
                runs: dict[Mode, list[Run]] = {mode: [] for mode in MODES}
                for engine in engines.values():
                    engine.drafted = engine.accepted = 0
                    engine.observed.steps.clear()
                for turn in range(rounds + 1):  # the first to warm up
                    for mode, engine in engines.items():
                        runs[mode].append(
                            await engine.run(some[:batch], [NEW_TOKENS] * batch, f"{kind} {batch} {turn}")
                        )
                if any(run.tokens != runs["off"][0].tokens for mode in MODES for run in runs[mode]):
                    raise SystemExit(f"{kind}, batch {batch}: speculation changed a token: no figures")
                rows += [row(kind, batch, mode, engines[mode], runs[mode][1:]) for mode in MODES]
    return rows


def row(kind: str, batch: int, mode: Mode, engine: Engine, runs: Several[Run]) -> dict[str, Any]:
    tokens = batch * NEW_TOKENS
    return {
        "prompts": kind,
        "batch": batch,
        "mode": mode,
        "tokens_per_s": statistics.median(tokens / run.wall_s for run in runs),
        "tokens_per_s_least": min(tokens / run.wall_s for run in runs),
        "drafts_a_token": engine.drafted / (tokens * (len(runs) + 1)),
        "accepted_share": engine.accepted / engine.drafted if engine.drafted else None,
        "actual_over_predicted": {"plain": _ratio(engine, drafts=False), "with drafts": _ratio(engine, drafts=True)},
    }


def _ratio(engine: Engine, *, drafts: bool) -> float | None:
    """Of what steps with or without drafts took over what they were to take; None without any, or a prediction."""
    steps = [(predicted, actual) for having, predicted, actual in engine.observed.steps if having == drafts]
    predicted_ms = sum(predicted for predicted, _ in steps)
    known = engine.speculate != "off" and predicted_ms > 0  # else costs were not measured
    return sum(actual for _, actual in steps) / predicted_ms if known else None


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="speculation by prompt lookup")
    ratio = "actual / predicted, plain; with drafts"
    for heading in ("prompts", "batch", "mode", "tokens/s (least)", "drafts a token", "accepted", ratio):
        table.add_column(heading)
    for one in rows:
        accepted = "" if one["accepted_share"] is None else f"{one['accepted_share']:.0%}"
        rate = f"{one['tokens_per_s']:.0f} ({one['tokens_per_s_least']:.0f})"
        ratios = "; ".join(f"{value:.2f}" for value in one["actual_over_predicted"].values() if value is not None)
        drafts = f"{one['drafts_a_token']:.2f}"
        table.add_row(one["prompts"], str(one["batch"]), one["mode"], rate, drafts, accepted, ratios)
    console.print(table)


def main(
    model: Annotated[Path | None, typer.Option(help="A trained checkpoint; the one that ships by default.")] = None,
    weights: Annotated[
        str, typer.Option(help="fp32, bf16 or int8; batch-invariant all, so that tokens agree.")
    ] = "int8",
    threads: Annotated[int, typer.Option(help="Threads.")] = 2,
    quick: Annotated[bool, typer.Option(help="One batch size and one round; nothing is kept.")] = False,
) -> None:
    """Runs everything and writes benchmarks/results/text-speculation.json."""
    share_torch_threads()
    torch.set_num_threads(threads)
    batches, rounds = ((2,), 1) if quick else ((1, 4, 16), 7)
    rows = asyncio.run(measure(model or default_model(), weights, batches, rounds))
    show(rows)
    if not quick:
        console.print(f"written to {write('text-speculation', {'weights': weights, 'rows': rows})}")


if __name__ == "__main__":
    typer.run(main)
