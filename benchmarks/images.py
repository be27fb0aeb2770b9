"""Images under load: `python -m benchmarks.images [--quick]`.

The experiments of `benchmarks.experiment` on one image worker, requests of 16 to 64 images, Headway's planner against
policies that share its batching, its order by deadline and its feasibility check (`fifo` by nature has neither of the
first two): every rung fixed, the threshold policy, request-level FIFO batching at the top rung, and Headway's own with
no eye for those who come (`greedy`). Left out: a fixed rung with admission switched off, which keeps nothing it
promises.

Quality is told twice: as the mean normalised quality of the rungs, and as the DFD of the mixture that was served
(`benchmarks.images_quality`). Results and picture: `benchmarks/results/images.json` and `.svg`. About 19 minutes;
`--quick` about one, and only to see that it runs.
"""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.experiment.arrivals import Arrival, Mix
from benchmarks.experiment.capacity import Effort
from benchmarks.experiment.generator import Answer
from benchmarks.experiment.plots import ALL, Panel, draw
from benchmarks.experiment.runner import Cell, Contender, Plan, Results, Subject, run
from benchmarks.experiment.worker import usable_threads
from benchmarks.figures import RESULTS, write
from benchmarks.images_bookkeeping import bookkeeping
from benchmarks.images_quality import ServedQuality
from headway.client import AsyncHeadway
from headway.requests import images_request, service_level
from headway.v1 import common_pb2
from services.dit_worker.model.checkpoint import read_config

console = Console(width=120)
MODELS = Path(__file__).parents[1] / "models"
SIZES = (16, 32, 48, 64)
FULL = Plan(most_cell_s=75.0, shape_s=40.0)
QUICK = Plan(loads=(0.6, 1.5), requests=100, most_cell_s=6.0, shape_s=6.0, effort=Effort(5, 2.0), gap_instances=5)
BASELINE_SHARE = 0.2
FULL_IMAGES, QUICK_IMAGES = 1024, 128


def default_model() -> Path:
    """The 32x32 model where it is, else the digits."""
    shapes = MODELS / "dit-shapes"
    return shapes if (shapes / "card.json").exists() else MODELS / "dit-digits"


def contenders(ladder: tuple[int, ...], wanted: str) -> list[Contender]:
    """Headway first; `wanted` names the others, separated by commas, or all."""
    found = [Contender("headway")]
    for name in (*(f"fixed:{steps}" for steps in ladder), "threshold", "fifo", "greedy"):
        if wanted == "all" or name in wanted.split(","):
            shapes = name in (f"fixed:{ladder[0]}", "threshold")
            found.append(Contender(name, ("--policy", name), BASELINE_SHARE, shapes))
    return found


def subject(model: Path, classes: int) -> Subject:
    """The worker that serves `model`."""

    async def send(client: AsyncHeadway, arrival: Arrival, level: common_pb2.ServiceLevel) -> AsyncIterator[Answer]:
        label = arrival.seed % classes
        request = images_request(label, count=arrival.items, seed=arrival.seed, format="raw", level=level)
        async for message in client.images(request, deadline_s=arrival.deadline_ms / 1000):
            if message.HasField("plan"):
                yield message.plan
            elif message.HasField("summary"):
                yield message.summary.served

    async def golden(client: AsyncHeadway) -> bytes:
        request = images_request(classes - 1, count=16, seed=7, format="raw", level=service_level(exact="1"))
        parts = [message async for message in client.images(request, deadline_s=25.0)]
        return b"".join(image.data for part in parts for image in part.batch.images)

    command = (sys.executable, "-m", "services.dit_worker.main", "--model", str(model))
    return Subject("images", "images", command, send, Mix(SIZES), golden)


def add_dfd(results: Results, quality: ServedQuality) -> None:
    """Puts the DFD of what was served into every cell's figures."""
    for cell in results.cells:
        found = quality.dfd(cell.figures["items_by_rung"])
        cell.figures["served_dfd"] = None if found is None else found[0]
        cell.figures["served_dfd_95"] = None if found is None else found[1:]


def _dfd(cell: Cell) -> tuple[float, float, float] | None:
    value = cell.figures["served_dfd"]
    return None if value is None else (value, *cell.figures["served_dfd_95"])


PANELS = (*ALL[:3], Panel("DFD of the mixture that was served (lower is better)", _dfd), *ALL[3:])


def verdict(results: Results, top: str, lowest: str) -> list[dict[str, Any]]:
    """Where the top rung fixed attains half of what it is sent: attainment and quality of Headway beside the lowest."""
    rows = []
    for load in results.loads():
        ours, fixed, least = (results.cell(name, "steady", load) for name in ("headway", top, lowest))
        if ours is None or fixed is None or least is None:
            continue
        rows.append(
            {
                "load": load,
                "top_fixed_in_time_of_all": fixed.figures["in_time_of_all"]["share"],
                "headway_attainment": ours.figures["attainment_deadline"],
                "headway_dfd": ours.figures["served_dfd"],
                "lowest_fixed_dfd": least.figures["served_dfd"],
            }
        )
    return rows


def main(
    quick: Annotated[bool, typer.Option(help="a minute, to see that it runs; no figure of it means anything")] = False,
    policies: Annotated[str, typer.Option(help="policies beside headway, by commas; all; or none")] = "all",
    model: Annotated[Path | None, typer.Option(help="folder of the model; the 32x32 one where it is")] = None,
) -> None:
    """Measures the image worker under load and writes benchmarks/results/images.json and images.svg."""
    torch.set_num_threads(1)  # this process keeps to one core, where more threads would wait for each other
    folder = model or default_model()
    config = read_config(folder)
    with tempfile.TemporaryDirectory(prefix="headway-calibration-") as cache:
        kept = bookkeeping(folder, usable_threads(), 3 if quick else 15, Path(cache))
    for name, row in kept.items():
        console.print(f"bookkeeping, {name}: {row['share_of_step']:.1%} of a step over {row['images']} images")
    wanted = contenders(config.ladder, policies)
    results = asyncio.run(run(subject(folder, config.topology.classes), wanted, QUICK if quick else FULL))
    add_dfd(results, ServedQuality(folder, QUICK_IMAGES if quick else FULL_IMAGES))
    top, lowest = f"fixed:{config.ladder[0]}", f"fixed:{config.ladder[-1]}"
    figures = {"quick": quick, "bookkeeping": kept, "verdict": verdict(results, top, lowest), **results.as_dict()}
    name = "images-quick" if quick else "images"
    console.print(f"written to {write(name, figures)}")
    draw(results, RESULTS / f"{name}.svg", f"{config.name}: {results.about['worker']['engine']}", PANELS)


app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
app.command()(main)

if __name__ == "__main__":
    app()
