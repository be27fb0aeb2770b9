"""A cluster on a virtual clock: `python -m benchmarks.simulate [--quick]`.

The decisions of routers and workers, the very code that serves, on simulated time; see `benchmarks.simulation` for what
is left out. Every study compares on the same arrivals:

- `policies`: five placements and three ways to choose rungs, on the same arrivals;
- `bounds`: goodput over the clairvoyant bound; `staleness`: workers that report every 0 to 1 s;
- `fairness`: one tenant floods, with quotas and without; `spike`: attainment by priority when load steps up;
- `devices`: three kinds on a device; `several_routers`: routers that do not know of each other;
- `scale`: 1 to 1,000 workers, and how many routers those need. Measured here: the CPU time of a placement. Taken from
  elsewhere: what passing a message on and a `Pick` cost a router (`benchmarks.simulation.studies`);
- `shared_documents`: prompts that begin alike, in a closed loop, with the text worker's own scheduler and cache.

Writes `benchmarks/results/simulate.json` (`simulate-live.json` with `--validate`). The full run takes a few minutes on
one core, `--quick` about twenty seconds. A request costs about a millisecond of CPU time here, mostly the planner's,
so a million of them (`--only scale --requests 1000000`) take about a quarter of an hour for each size. `--validate`
runs nothing of this, but the same load on two real workers and simulated: see `benchmarks.simulation.live`.
"""

import asyncio
import time
from dataclasses import asdict, replace
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.figures import write
from benchmarks.simulation import live
from benchmarks.simulation.host import Noise
from benchmarks.simulation.report import show
from benchmarks.simulation.studies import MESSAGE_S, PICK_S, STUDIES, USED, Effort

LOADS = (0.3, 0.6, 0.9, 1.2, 1.5)
COMPARED = (0.6, 1.2)
"""Loads of the studies that are not about load."""
QUICK = Effort(requests=150, bounded_requests=90, each=2, sizes=(1, 30), a_worker=3)
console = Console(width=140)


def run(effort: Effort, only: list[str]) -> dict[str, Any]:
    """The studies that are wanted, each shown as soon as it is done."""
    found: dict[str, Any] = {}
    for name in only or list(STUDIES):
        start_s = time.perf_counter()
        found[name] = list(STUDIES[name](effort, LOADS if name == "bounds" else COMPARED))
        show(name, found[name], console)
        requests = sum(row["n"] for row in found[name])
        console.print(f"{requests} requests in {time.perf_counter() - start_s:.1f} s\n", style="dim")
    return found


def main(
    quick: Annotated[bool, typer.Option(help="Seconds, and only to see that it runs.")] = False,
    requests: Annotated[int, typer.Option(help="Of each run; 0: as is usual.", min=0)] = 0,
    workers: Annotated[int, typer.Option(help="Of each kind; 0: as is usual.", min=0)] = 0,
    only: Annotated[list[str] | None, typer.Option(help="A study; may be given again.")] = None,
    seed: int = 1,
    spread: Annotated[float, typer.Option(help="Standard deviation of a step over its mean.", min=0, max=1)] = 0.05,
    slow_share: Annotated[float, typer.Option(help="Of the time, hosts are 1.5 times slower.", min=0, max=0.9)] = 0.0,
    stall_chance: Annotated[float, typer.Option(help="Of a step to be held up by 30 ms.", min=0, max=1)] = 0.0,
    validate: Annotated[bool, typer.Option(help="Two real workers behind a real router, and simulated.")] = False,
) -> None:
    """Simulates clusters and writes benchmarks/results/simulate.json."""
    if unknown := set(only or ()) - STUDIES.keys():
        raise typer.BadParameter(f"no study {', '.join(sorted(unknown))}; there are {', '.join(STUDIES)}")
    if validate:
        _validate(6.0 if quick else 20.0)
        return
    noise = Noise(spread, slow_share=slow_share, stall_chance=stall_chance)
    effort = replace(QUICK if quick else Effort(), seed=seed, noise=noise)
    effort = replace(effort, requests=requests or effort.requests, each=workers or effort.each)
    start_s = time.perf_counter()
    found = run(effort, only or [])
    taken_s = time.perf_counter() - start_s
    assumed = {"message_s": MESSAGE_S, "pick_s": PICK_S, "used": USED}
    path = write("simulate", {"effort": asdict(effort), "assumed": assumed, "took_s": taken_s, "studies": found})
    console.print(f"{taken_s:.0f} s in all; written to {path}")


def _validate(seconds: float) -> None:
    found = asyncio.run(live.validate(seconds))
    live.show(found, console)
    console.print(f"written to {write('simulate-live', found)}")


if __name__ == "__main__":
    typer.run(main)
