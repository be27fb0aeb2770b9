"""Three kinds on one device under load: `python -m benchmarks.mixed [--quick]`.

The experiments of `benchmarks.experiment` with a text, an image and a splat worker on one device, behind a router:
requests as in `benchmarks.text_load`, `benchmarks.images` and `benchmarks.splats`, deadlines of 1.5, 3 and 6 times
what a request alone takes at the top rung, Poisson, open loop, each kind with a third of the load. Contenders, each on
a mesh of its own, with the same arrivals:

- `headway`; `no arbiter`: the same with steps that run whenever they like;
- `top` and `lowest`: one rung, fixed; `greedy`: with no eye for those who come; `fifo`: neither rungs nor order. They
  have the arbiter and, but for `fifo`, the same batching, order by deadline and feasibility check.

Left out: the router's other placements, which have no choice with one worker of a kind (`benchmarks.shared_prefix` has
two; `benchmarks.simulate` has many), and a mesh without admission, which keeps nothing that it promises. Baselines are
sent the first 0.4 of each cell, and are compared with Headway over that load, not over the same requests.

Targets: at most 1 in 500 of those admitted late at every load, goodput at least 85 % of the bound, and at load 1.2 at
least 1.3 times that of the best baseline (by goodput of a request). `headway` and `no arbiter` side by side show what
the arbiter does to the tail. With different bytes for one request nothing is reported.

Results: `benchmarks/results/mixed.json`. About 14 minutes; `--quick` less than two, and only to see that it runs.
"""

import asyncio
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import images, splats, text_load
from benchmarks.experiment.capacity import Effort
from benchmarks.experiment.mixture import Extent, MixedCell, Mixture, Rival, Subjects, run_mixture
from benchmarks.figures import write
from services.dit_worker.model.checkpoint import read_config
from services.splat_worker.card import read_cards

console = Console(width=150)
KINDS = ("text", "image", "splat")
BASELINE_SHARE = 0.4
COMPARED_AT = 1.2
FULL = Extent((0.3, 0.9, COMPARED_AT, 1.5), cell_s=40.0, effort=Effort(9, 2.0))
QUICK = Extent((1.2,), cell_s=3.0, effort=Effort(2, 0.5))


def subjects() -> Subjects:
    """The three kinds, as their own benchmarks ask for them."""
    model = images.MODELS / "dit-digits"  # the one that a mesh serves unless it is told otherwise
    return {
        "text": text_load.subject(),
        "image": images.subject(model, read_config(model).topology.classes),
        "splat": splats.subject(read_cards(splats.SCENES)[splats.SCENE].home),
    }


def policies(text: str, image: str, splat: str) -> dict[str, tuple[str, ...]]:
    """Flags of the workers."""
    return {kind: ("--policy", name) for kind, name in zip(KINDS, (text, image, splat), strict=True)}


RIVALS = (
    Rival("headway"),
    Rival("no arbiter", arbiter=False),
    Rival("top", policies(text_load.TOP, "fixed:0", splats.TOP), share=BASELINE_SHARE),
    Rival("lowest", policies(text_load.LOWEST, "lowest", splats.LOWEST), share=BASELINE_SHARE),
    Rival("greedy", policies("greedy", "greedy", "greedy"), share=BASELINE_SHARE),
    Rival("fifo", policies("fifo", "fifo", "fifo"), share=BASELINE_SHARE),
)


def verdict(found: Mixture) -> dict[str, Any]:
    """Headway against the targets."""
    ours = [cell for cell in found.cells if cell.rival == "headway"]
    return {
        "late_of_admitted": {cell.load: cell.figures["attainment_deadline"]["missed_share_95"] for cell in ours},
        "missed": {cell.load: cell.figures["attainment_deadline"]["missed"] for cell in ours},
        "goodput_over_bound": {cell.load: cell.figures["goodput_over_bound"] for cell in ours},
        "at": COMPARED_AT,
        "over_best_baseline": _over_best(found, COMPARED_AT),
        "arbiter": {cell.load: _tails(found, cell.load) for cell in ours},
    }


def _over_best(found: Mixture, load: float) -> dict[str, Any] | None:
    ours = found.cell("headway", load)
    others = [cell for cell in found.cells if cell.load == load and cell.rival not in ("headway", "no arbiter")]
    if ours is None or not others:
        return None
    best = max(others, key=lambda cell: cell.figures["goodput_per_request"])
    ratio = ours.figures["goodput_per_request"] / best.figures["goodput_per_request"]
    return {"baseline": best.rival, "ratio": ratio}


def _tails(found: Mixture, load: float) -> dict[str, Any]:
    return {cell.rival: _tail(cell) for name in ("headway", "no arbiter") if (cell := found.cell(name, load))}


def _tail(cell: MixedCell) -> dict[str, Any]:
    figures = cell.figures
    return {
        "latency_over_deadline_p99": figures["latency_over_deadline"]["p99"],
        "prediction_error_ms_p99": figures["prediction_error_ms"]["p99"],
        "late": figures["attainment_deadline"]["missed"],
        "admitted": figures["admitted"],
    }


def show(found: Mixture, verdict_: dict[str, Any]) -> None:
    """Prints the table and what it comes to."""
    table = Table(title="three kinds on one device")
    columns = ("load", "contender", "kind", "sent", "admitted", "late", "95 %", "quality", "goodput / sent", "/ bound")
    for column in (*columns, "latency / deadline p99"):
        table.add_column(column)
    for cell in sorted(found.cells, key=lambda cell: cell.load):
        for kind, figures in {"all": cell.figures, **cell.by_kind}.items():
            table.add_row(*_row(cell, kind, figures))
    console.print(table)
    console.print(verdict_)
    for line in found.late_cells():
        console.print(f"[red]not an open loop, the generator was late: {line}")


def _row(cell: MixedCell, kind: str, figures: dict[str, Any]) -> tuple[str, ...]:
    late = figures["attainment_deadline"]
    low, high = late["missed_share_95"]
    over, tail = figures.get("goodput_over_bound"), figures["latency_over_deadline"]["p99"]
    first = (f"{cell.load:g}", cell.rival) if kind == "all" else ("", "")
    return (
        *first, kind, str(figures["n"]), str(figures["admitted"]), str(late["missed"]), f"{low:.2%} to {high:.2%}",
        _number(figures["served_quality"]), _number(figures["goodput_per_request"]), _number(over), _number(tail),
    )  # fmt: skip


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main(
    quick: Annotated[bool, typer.Option(help="minutes, to see that it runs; no figure of it means anything")] = False,
    only: Annotated[str, typer.Option(help="contenders beside headway, by commas; all; or none")] = "all",
) -> None:
    """Measures the mesh under mixed load and writes benchmarks/results/mixed.json."""
    torch.set_num_threads(1)  # this process keeps to one core
    wanted = [rival for rival in RIVALS if only == "all" or rival.name in ("headway", *only.split(","))]
    wanted = wanted[:2] if quick and only == "all" else wanted
    extent = QUICK if quick else FULL
    found = asyncio.run(run_mixture(subjects(), wanted, extent))
    judged = verdict(found)
    show(found, judged)
    about = {"quick": quick, "cell_s": extent.cell_s, "seed": extent.seed, "generator_late": found.late_cells()}
    capacity = {kind: each.as_dict() for kind, each in found.capacity.items()}
    cells = [cell.as_dict() for cell in found.cells]
    figures = {**about, "verdict": judged, "capacity": capacity, "cells": cells}
    console.print(f"written to {write('mixed-quick' if quick else 'mixed', figures)}")


app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
app.command()(main)

if __name__ == "__main__":
    app()
