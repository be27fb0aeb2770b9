"""Splats: `python -m benchmarks.splats [--quick] [--part all|frames|load|paths]`.

- `frames` (`benchmarks.splats_frames`): time of a frame against gaussians, pixels and threads, with gsplat's torch
  reference in the same run; quality against cost for every level.
- `load`: the experiments of `benchmarks.experiment` on one splat worker, with clients that walk around the scene and
  ask for a frame of 512 x 512 wherever they are: Headway's planner against the top and the lowest level, fixed, on the
  same worker. They share its batching, its order by deadline and its feasibility check.
- `paths`: so many clients at once stream a path at 15 frames a second (`RenderPath`): what was rendered, at what
  quality, what was skipped, which paths were refused.

Results: `benchmarks/results/splats.json`, `splats-load.svg`, and those of the frames. About 9 minutes beside the
frames' part; `--quick` about one, and only to see that it runs.
"""

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks import splats_paths
from benchmarks.experiment.arrivals import LOADS, Arrival, Mix
from benchmarks.experiment.capacity import Effort
from benchmarks.experiment.generator import Answer
from benchmarks.experiment.plots import draw
from benchmarks.experiment.runner import Cell, Contender, Plan, Results, Subject, run
from benchmarks.figures import RESULTS, write
from headway.client import AsyncHeadway
from headway.requests import look_at, render_request, service_level
from headway.v1 import common_pb2, splat_pb2
from services.splat_worker.card import read_cards
from services.splat_worker.views import Pose

console = Console(width=120)
SCENES, SCENE = Path(__file__).parents[1] / "models" / "scenes", "still-life"
SIDE_PX = 512
CLIENTS = 32
TURN_PER_S = 0.05
"""Share of a turn that a client walks in a second."""
TOP, LOWEST = "fixed:0", "lowest"
CONTENDERS = (
    Contender("headway"),
    Contender(TOP, flags=("--policy", TOP), share=0.5),
    Contender(LOWEST, flags=("--policy", LOWEST), share=0.5),
)
FULL = Plan(loads=(0.1, 0.2, *LOADS), requests=4000, most_cell_s=25.0, shape_s=15.0, effort=Effort(15, 2.0))
QUICK = Plan(loads=(0.2, 1.2), requests=150, most_cell_s=3.0, shape_s=3.0, effort=Effort(3, 1.0), gap_instances=3)


def walker(home: Pose, client: int, at_s: float) -> splat_pb2.Camera:
    """Where a client is at a time: each goes round what `home` looks at, at its distance, up and down on the way."""
    turn = 2 * math.pi * (client * (math.sqrt(5) - 1) / 2 + TURN_PER_S * at_s)
    rise = math.radians(25 + 20 * math.sin(turn + client))
    x, y, z = (place - goal for place, goal in zip(home.position, home.target, strict=True))
    away = math.sqrt(x * x + y * y + z * z)
    level = away * math.cos(rise)
    offset = (level * math.sin(turn), away * math.sin(rise), level * math.cos(turn))  # the shipped scene's up is y
    place = tuple(goal + part for goal, part in zip(home.target, offset, strict=True))
    return look_at((place[0], place[1], place[2]), home.target, up=home.up, field_of_view_deg=home.field_of_view_deg)


def subject(home: Pose) -> Subject:
    """The worker with the scene that ships."""

    async def send(client: AsyncHeadway, arrival: Arrival, level: common_pb2.ServiceLevel) -> AsyncIterator[Answer]:
        camera = walker(home, arrival.seed % CLIENTS, arrival.at_s)
        request = render_request(SCENE, width=SIDE_PX, height=SIDE_PX, camera=camera, format="jpeg", level=level)
        answer = await client.render(request, deadline_s=arrival.deadline_ms / 1000)
        yield answer.plan
        yield answer.served

    async def golden(client: AsyncHeadway) -> bytes:
        level = service_level(exact=lowest_label())
        request = render_request(SCENE, width=256, height=256, camera=walker(home, 3, 0.0), format="raw", level=level)
        return (await client.render(request, deadline_s=25.0)).frame.data

    command = (sys.executable, "-m", "services.splat_worker.main", "--scenes", str(SCENES))
    return Subject("splats", "frames", command, send, Mix((1,)), golden)


def lowest_label() -> str:
    """The lowest rung of the scene that ships."""
    ladder = read_cards(SCENES)[SCENE].ladder
    assert ladder is not None
    return ladder.rungs[-1].label


def decibel(quality: float | None) -> float | None:
    """PSNR to the top rung that a normalised quality stands for; 45 dB and more count as 45."""
    return None if quality is None else 20 + 25 * quality


def verdict(results: Results) -> dict[str, Any]:
    """At the load where the top level, fixed, is nearest to attaining half of all frames: Headway beside the lowest."""
    loads = [load for load in results.loads() if results.cell(TOP, "steady", load) is not None]
    load = min(loads, key=lambda load: abs(_in_time(_cell(results, TOP, load)) - 0.5))
    ours, top, lowest = (_cell(results, name, load) for name in ("headway", TOP, LOWEST))
    ours_db, lowest_db = decibel(ours.figures["served_quality"]), decibel(lowest.figures["served_quality"])
    return {
        "load": load,
        "top_fixed_in_time_of_all": top.figures["in_time_of_all"],
        "headway_in_time_of_all": ours.figures["in_time_of_all"],
        "headway_attainment": ours.figures["attainment_deadline"],
        "headway_psnr_db_at_most_45": ours_db,
        "above_lowest_db": None if ours_db is None or lowest_db is None else ours_db - lowest_db,
    }


def _cell(results: Results, name: str, load: float) -> Cell:
    found = results.cell(name, "steady", load)
    assert found is not None
    return found


def _in_time(cell: Cell) -> float:
    return float(cell.figures["in_time_of_all"]["share"])


def load_part(home: Pose, quick: bool) -> dict[str, Any]:
    """The experiments, and their picture."""
    results = asyncio.run(run(subject(home), CONTENDERS, QUICK if quick else FULL))
    name = "splats-load-quick" if quick else "splats-load"
    draw(results, RESULTS / f"{name}.svg", f"frames of {SIDE_PX} x {SIDE_PX}: {results.about['worker']['engine']}")
    found = verdict(results)
    console.print(f"where the top level attains half: {found}")
    return {"verdict": found, **results.as_dict()}


def frames_part(quick: bool) -> dict[str, Any]:
    """One frame at a time."""
    from benchmarks import splats_frames  # imports numba, whose threads the other parts must not inherit

    return splats_frames.run(quick)


def _parts(wanted: str) -> Sequence[str]:
    known = ("frames", "load", "paths")
    if wanted not in ("all", *known):
        raise typer.BadParameter(f"must be all, {', '.join(known)}")
    return known if wanted == "all" else (wanted,)


def main(
    quick: Annotated[bool, typer.Option(help="a minute, to see that it runs; no figure of it means anything")] = False,
    part: Annotated[str, typer.Option(help="frames, load, paths, or all")] = "all",
) -> None:
    """Measures the splat worker and writes benchmarks/results/splats.json and pictures."""
    home, figures = read_cards(SCENES)[SCENE].home, dict[str, Any]()
    wanted = _parts(part)
    if "frames" in wanted:  # first: the load part moves this process to one core
        figures["frames"] = frames_part(quick)
    if "load" in wanted:
        figures["load"] = load_part(home, quick)
    if "paths" in wanted:
        figures["paths"] = asyncio.run(splats_paths.measure(subject(home).command, SCENE, home, walker, quick))
    name = "splats" + ("" if part == "all" else f"-{part}") + ("-quick" if quick else "")
    console.print(f"written to {write(name, {'quick': quick, **figures})}")


app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
app.command()(main)

if __name__ == "__main__":
    app()
