"""Prompts that begin alike, two workers, four ways to place them: `python -m benchmarks.shared_prefix [--quick]`.

16 documents of 384 tokens, drawn evenly, each prompt another question about one of them, 24 new tokens. Two text
workers with the model that ships, a thread and a core each (router and generator share them where there are but two),
and KV caches that hold about two thirds of the documents each: who sends a document to both workers loses some. Behind
the router each placement in turn, on fresh workers, with the same requests in the same order: `headway`, `round-robin`,
`prefix-hash`, `least-queue`.

Closed loop, so many requests at once: 1, 2 and 4 for the time to first token, 32 for throughput. Each number of each
policy is warmed by questions about the documents. Targets for `headway`: at 1 to 4, a time to first token at least 42 %
lower than round robin's, in the mean, because there are two kinds of answers: where the document was cached, and where
it was not (medians beside); at 32, throughput at least round robin's.

Workers are in batch-invariant mode, so that all policies must give the same tokens: else nothing is reported. Results:
`benchmarks/results/shared-prefix.json`. About 7 minutes; `--quick` about one, and only to see that it runs.
"""

import asyncio
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.experiment.worker import usable_cores
from benchmarks.figures import interval, quantile, write
from benchmarks.shared_documents import DOCUMENT_TOKENS, Asking, Reply, excerpts, questions, shares, two_workers
from services.text_worker.config import default_model

console = Console(width=140)
PLACEMENTS = ("headway", "round-robin", "prefix-hash", "least-queue")
LOW, HIGH = (1, 2, 4), 32
Tokens = dict[str, tuple[int, ...]]
"""What was answered, by prompt."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is asked."""

    rounds: int = 2
    """Of all placements, in opposite orders."""
    low: int = 160
    """Questions at each of the low numbers."""
    high: int = 480


QUICK = Plan(rounds=1, low=12, high=40)


async def measure(plan: Plan) -> list[dict[str, Any]]:
    """Rows of (placement, at once). Raises SystemExit where two placements gave different answers."""
    asking, rows, said = Asking(default_model()), dict[tuple[str, int], list[list[Reply]]](), Tokens()
    texts = excerpts(asking.tokenizer)
    with tempfile.TemporaryDirectory(prefix="headway-calibration-") as calibrations:
        for turn in range(plan.rounds):
            for placement in PLACEMENTS if turn % 2 == 0 else PLACEMENTS[::-1]:
                async with two_workers(placement, usable_cores(), Path(calibrations)) as client:
                    every = questions(texts, 4 * len(texts), seed=100 + turn)
                    hold_against(said, await asking.closed_loop(client, every, 4))
                    for at_once in (*LOW, HIGH):
                        count = plan.high if at_once == HIGH else plan.low
                        asked = questions(texts, count, seed=1000 * turn + at_once)
                        replies = await asking.closed_loop(client, asked, at_once)
                        hold_against(said, replies)
                        rows.setdefault((placement, at_once), []).append(replies)
                        console.print(f"{placement}, {at_once} at once: done", style="dim")
    return [{"placement": name, "at_once": at_once, **_figures(runs)} for (name, at_once), runs in rows.items()]


def hold_against(said: Tokens, replies: Sequence[Reply]) -> None:
    """Adds answers to what was said before. Raises SystemExit where the same prompt was answered otherwise."""
    for reply in replies:
        if said.setdefault(reply.question.prompt, reply.tokens) != reply.tokens:
            raise SystemExit("the same prompt has two answers: nothing is reported")


def _figures(runs: Sequence[Sequence[Reply]]) -> dict[str, Any]:
    replies = [reply for run in runs for reply in run]
    first_ms = [reply.first_token_s * 1000 for reply in replies]
    return {
        "n": len(replies),
        "first_token_mean_ms": statistics.mean(first_ms),
        "first_token_mean_ms_95": interval(first_ms, statistics.mean),
        "first_token_p50_ms": quantile(first_ms, 0.5),
        "first_token_p95_ms": quantile(first_ms, 0.95),
        "requests_per_s": statistics.median(_rate(run) for run in runs),
        "requests_per_s_of_runs": [_rate(run) for run in runs],
        "cached_share_of_documents": statistics.mean(reply.cached_tokens for reply in replies) / DOCUMENT_TOKENS,
        "shares_of_workers": [shares(run) for run in runs],
    }


def _rate(run: Sequence[Reply]) -> float:
    return len(run) / (max(reply.ended_s for reply in run) - min(reply.began_s for reply in run))


def verdict(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Every placement against round robin."""
    by = {(row["placement"], row["at_once"]): row for row in rows}
    found: dict[str, Any] = {}
    for placement in PLACEMENTS:
        lower = {
            of: {at_once: 1 - by[placement, at_once][of] / by["round-robin", at_once][of] for at_once in LOW}
            for of in ("first_token_mean_ms", "first_token_p50_ms")
        }
        throughput = by[placement, HIGH]["requests_per_s"] / by["round-robin", HIGH]["requests_per_s"]
        found[placement] = {"lower": lower, "throughput_at_32": throughput}
    return found


def show(rows: Sequence[dict[str, Any]], judged: dict[str, Any]) -> None:
    """Prints the tables."""
    table = Table(title="questions about shared documents, two workers")
    columns = (
        "at once",
        "placement",
        "first token, ms (mean)",
        "95 %",
        "p50",
        "p95",
        "requests / s",
        "cached",
        "shares",
    )
    for column in columns:
        table.add_column(column)
    for row in sorted(rows, key=lambda row: row["at_once"]):
        low, high = row["first_token_mean_ms_95"]
        parts = ", ".join(f"{share:.0%}" for share in row["shares_of_workers"][0])
        table.add_row(
            str(row["at_once"]), row["placement"], f"{row['first_token_mean_ms']:.1f}", f"{low:.1f} to {high:.1f}",
            f"{row['first_token_p50_ms']:.1f}",
            f"{row['first_token_p95_ms']:.1f}", f"{row['requests_per_s']:.1f}",
            f"{row['cached_share_of_documents']:.0%}", parts,
        )  # fmt: skip
    console.print(table)
    for placement, each in judged.items():
        lower = each["lower"]["first_token_mean_ms"]
        shown = ", ".join(f"{share:+.0%} at {at_once}" for at_once, share in lower.items())
        console.print(
            f"{placement}: first token lower than round robin's by {shown} in the mean; "
            f"throughput at {HIGH} {each['throughput_at_32']:.2f} times round robin's"
        )


def main(
    quick: Annotated[bool, typer.Option(help="a minute, to see that it runs; no figure of it means anything")] = False,
) -> None:
    """Measures the placements and writes benchmarks/results/shared-prefix.json."""
    rows = asyncio.run(measure(QUICK if quick else Plan()))
    judged = verdict(rows)
    show(rows, judged)
    name = "shared-prefix-quick" if quick else "shared-prefix"
    console.print(f"written to {write(name, {'quick': quick, 'verdict': judged, 'rows': rows})}")


app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
app.command()(main)

if __name__ == "__main__":
    app()
