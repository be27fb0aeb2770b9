"""The text engine against its peers: `python -m benchmarks.text`, about 25 minutes; `--quick` for a look in about 2.

Each contender runs in a process of its own, one after another and round by round, over the same checkpoint and as
many threads. Precision is shown in every row. What fewer bits change is measured on the trained model that ships,
because random weights exaggerate it.
"""

import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.figures import quantile, write
from benchmarks.text_workloads import SHAPE, SMALL, Workload, make_checkpoint, workloads
from services.text_worker.config import default_model
from services.text_worker.fidelity import fidelity, windows_of
from services.text_worker.model.families import load_architecture
from services.text_worker.tokenizer import load_tokenizer

console = Console(width=140)
OURS = (("fp32",), ("bf16",), ("int8",), ("fp32", "invariant"))
TRUTH = "headway fp32"
LEAST_SAME_FIRST = 0.5
"""Below this share of equal first tokens a contender runs another model; with random weights fewer bits change some."""
LEAST_SAME_TOP = 0.9
"""Below this share of equal likeliest tokens on the trained model a kind of weights is not reported."""


def commands(peers: list[str]) -> dict[str, list[str]]:
    """How each contender is started; a peer is given as NAME=PYTHON=SCRIPT, behind the script its arguments."""
    found = {f"headway {' '.join(kind)}": [sys.executable, "-m", "benchmarks.text_engine", *kind] for kind in OURS}
    for peer in peers:
        name, python, script = peer.split("=", 2)
        found[name] = [python, *shlex.split(script)]
    return found


def run(command: list[str], task: dict[str, Any]) -> dict[str, Any]:
    """A contender's answer. Raises CalledProcessError when it fails."""
    done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def same_first_share(answer: dict[str, Any], truth: dict[str, Any]) -> float:
    """How many requests' first tokens are those of `truth`, in the first run of every workload."""
    pairs = [
        pair
        for name, runs in answer["runs"].items()
        for pair in zip(runs[0]["tokens"], truth["runs"][name][0]["tokens"], strict=True)
    ]
    return sum(one[0] == other[0] for one, other in pairs) / len(pairs)


def row(runs: list[dict[str, Any]], workload: Workload) -> dict[str, float]:
    """Medians over the runs; first tokens and gaps over all requests of all runs."""
    first, gaps = ([value for one in runs for value in one[key]] for key in ("first_s", "gaps_s"))
    new_tokens = sum(workload.new_tokens)
    return {
        "tokens_per_s": statistics.median(new_tokens / one["wall_s"] for one in runs),
        "tokens_per_s_least": min(new_tokens / one["wall_s"] for one in runs),
        "first_token_ms_p50": 1000 * quantile(first, 0.5),
        "first_token_ms_p95": 1000 * quantile(first, 0.95),
        "token_ms_p50": 1000 * quantile(gaps, 0.5),
        "token_ms_p95": 1000 * quantile(gaps, 0.95),
    }


def agreement(windows: int) -> dict[str, dict[str, float]]:
    """What bf16 and int8 change on the shipped model, on its own card's samples and this repository's documents."""
    folder = default_model()
    architecture = load_architecture(folder)
    text = "\n\n".join(path.read_text("utf-8") for path in sorted(Path("docs").rglob("*.md")))
    tokens = load_tokenizer(folder, architecture).encode(text)
    found = {
        kind: asdict(fidelity(folder, architecture, kind, windows_of(tokens, windows))) for kind in ("bf16", "int8")
    }
    for kind, values in found.items():
        if values["same_top_share"] < LEAST_SAME_TOP:
            raise SystemExit(f"{kind} agrees with fp32 on {values['same_top_share']:.1%} of tokens only: no figures")
    return found


def measure(
    folder: Path, work: tuple[Workload, ...], contenders: dict[str, list[str]], threads: int, rounds: int
) -> dict[str, Any]:
    """Every contender in turn, `rounds` times. One that cannot run is named with the reason."""
    answers: dict[str, list[dict[str, Any]]] = defaultdict(list)
    failed: dict[str, str] = {}
    for turn in range(rounds):
        for name, command in contenders.items():
            task = {
                "checkpoint": str(folder),
                "threads": threads,
                "repeats": 2,
                "extras": turn == 0,
                "workloads": [asdict(workload) for workload in work],
            }
            try:
                answer = run(command, task)
            except (OSError, subprocess.CalledProcessError) as error:
                failed[name] = str(getattr(error, "stderr", "") or error).strip()[-300:]
                console.print(f"{name} cannot run: {failed[name]}")
                continue
            truth = answers[TRUTH][0] if answers[TRUTH] else answer
            if (same := same_first_share(answer, truth)) < LEAST_SAME_FIRST:
                failed[name] = f"only {same:.0%} of first tokens are those of {TRUTH}"
                console.print(f"{name}: {failed[name]}")
                continue
            answers[name].append({**answer, "same_first_share": same})
            console.print(f"round {turn + 1}: {name}; {same:.0%} of first tokens as {TRUTH}")
    rows = []
    for name, given in answers.items():
        for workload in work:
            runs = [one for answer in given for one in answer["runs"].get(workload.name, ())]
            if runs:
                peak_mb = max(answer["peak_mb"] for answer in given)
                shown = {"contender": name, "precision": given[0]["precision"], "workload": workload.name}
                shown["same_first_share"] = min(answer["same_first_share"] for answer in given)
                rows.append({**shown, **row(runs, workload), "peak_mb": peak_mb})
    return {"rows": rows, "notes": {name: given[0]["notes"] for name, given in answers.items()}, "failed": failed}


def show(figures: dict[str, Any]) -> None:
    table = Table(title="tokens/s: median (least); ms: p50 / p95")
    for heading in ("workload", "contender", "precision", "tokens/s", "first token", "per token", "peak MB"):
        table.add_column(heading)
    for one in sorted(figures["rows"], key=lambda one: (one["workload"], -one["tokens_per_s"])):
        table.add_row(
            one["workload"],
            one["contender"],
            one["precision"],
            f"{one['tokens_per_s']:.0f} ({one['tokens_per_s_least']:.0f})",
            f"{one['first_token_ms_p50']:.0f} / {one['first_token_ms_p95']:.0f}",
            f"{one['token_ms_p50']:.1f} / {one['token_ms_p95']:.1f}",
            f"{one['peak_mb']:.0f}",
        )
    console.print(table)
    for name, notes in figures["notes"].items():
        for what, value in notes.items():
            console.print(f"{name}: {what} {value:.3g}")
    for kind, values in figures["agreement"].items():
        console.print(f"{kind} on the trained model: {values}")


def main(
    threads: Annotated[int, typer.Option(help="Threads of every contender.")] = 2,
    rounds: Annotated[int, typer.Option(help="Rounds over all contenders.")] = 3,
    peer: Annotated[list[str] | None, typer.Option(help="NAME=PYTHON=SCRIPT; see text_peers/README.md.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Where the random checkpoint is kept.")] = None,
    quick: Annotated[bool, typer.Option(help="A small checkpoint, short prompts, one round; nothing is kept.")] = False,
) -> None:
    """Runs everything and writes benchmarks/results/text.json."""
    with tempfile.TemporaryDirectory(prefix="headway-text-") as spare:
        folder = make_checkpoint(checkpoint or Path(spare) / "checkpoint", small=quick)
        vocab = (SMALL if quick else SHAPE)["vocab_size"]
        work = workloads(vocab, share=0.2 if quick else 1.0)
        figures = measure(folder, work, commands(peer or []), threads, 1 if quick else rounds)
    figures["agreement"] = agreement(2 if quick else 64)
    show(figures)
    if not quick:
        console.print(f"written to {write('text', figures)}")


if __name__ == "__main__":
    typer.run(main)
