"""Ten minutes of faults under load: `python -m benchmarks.chaos [--quick]`.

Real processes: Redis, the prefix cache, two routers, and on each of two devices (an arbiter and one thread each) a text
worker in batch-invariant mode, an image worker and a splat worker; a client that balances over both routers
(`headway.balancing`). Open loop at 0.7 of what was measured: each kind at a third of that share of the rate which its
cheapest allowed rung sustains alone. Targets are 1 s, deadlines 8, 12 or 16 s: enough to go on elsewhere.

One fault at a time, seeded, of every part in turn; the next one when the mesh is whole again: `kill -9` and a stall of
3 s (SIGSTOP, SIGCONT) of every process, Redis and arbiters too; a black hole of 3 s and a reset of every connection
between routers and each worker, and to the prefix cache; and a rolling restart, in which the cache, every worker and
every router, one after another, are told to drain and then to stop. Not shown: several faults at once, a lost host.

What is counted:

- admitted: a plan came to the caller (a unary frame, whose plan comes with its answer: it was not refused);
- failed: admitted, and ended in any error, or was answered wrongly. Callers here never cancel, so no error is theirs;
- availability of admitted work: 1 - failed / admitted; the target is 99.9 %. Refusals are counted beside, by reason;
- right: every token, its offset and the text are those that one worker gave before, alone; frames are its bytes at the
  rung that was served, none of a path skipped; images are its pixels within 2 of 255; how many are bit-equal is told.

With one wrong answer nothing is written, and the exit code is 1. Results: `benchmarks/results/chaos.json`, at another
`--load` with that in the name. About 13 minutes, 10 of them under faults; `--quick` less than two, with few faults, and
only to see that it runs. `--restart` makes one rolling restart and nothing else: `chaos-restart.json`, three minutes.
"""

import asyncio
import random
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.faults.cluster import ChaosMesh, chaos_mesh
from benchmarks.faults.report import figures_of, show
from benchmarks.faults.requests import KINDS, TARGET_S, make_references
from benchmarks.faults.schedule import (
    BLACK_HOLE,
    EVERYTHING,
    KILL,
    RESET,
    ROLLING,
    STALL,
    Event,
    Fault,
    disturb,
    faults,
)
from benchmarks.faults.traffic import DEADLINES_S, LOAD, Traffic
from benchmarks.figures import write
from benchmarks.splats import lowest_label
from headway.balancing import BalancedHeadway

console = Console(width=180)
WORKERS = ("text", "dit", "splat")
FIRST = {"text": "text-a-worker", "image": "dit-a-worker", "splat": "splat-a-worker"}
QUICK_FAULTS = (
    Fault(KILL, "text-a-worker"),
    Fault(STALL, "text-b-worker"),
    Fault(BLACK_HOLE, "dit-a-worker"),
    Fault(RESET, "splat-b-worker"),
    Fault(KILL, "one-router"),
    Fault(KILL, "redis"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done."""

    seconds: float = 600.0
    capacity_s: float = 8.0
    only: tuple[Fault, ...] = ()
    load: float = LOAD


QUICK = Plan(seconds=25.0, capacity_s=2.0, only=QUICK_FAULTS)
RESTART = Plan(seconds=1.0, capacity_s=4.0, only=(Fault(ROLLING, EVERYTHING),))
"""One rolling restart, however long that takes."""


async def measure(plan: Plan, seed: int) -> dict[str, Any]:
    """Raises SystemExit when an answer was wrong."""
    draw = random.Random(seed)
    async with chaos_mesh(WORKERS, _say) as mesh:
        await mesh.whole()
        references = await make_references({kind: mesh.workers[name] for kind, name in FIRST.items()}, 20.0)
        async with BalancedHeadway(mesh.routers) as client:
            traffic = Traffic(client, references)
            capacity = await traffic.capacity(lowest_label(), plan.capacity_s)
            rates = {kind: plan.load / len(KINDS) * rate for kind, rate in capacity.items()}
            console.print("requests a second, sustained:", _rounded(capacity), "and sent:", _rounded(rates))
            events = await _under_faults(mesh, traffic, rates, plan, seed, draw)
    figures = figures_of(traffic.calls, events)
    show(figures, console)
    for call in traffic.calls:
        if call.wrong is not None:
            console.print(f"[red]wrong: {call.asked}: {call.wrong}")
    if figures["wrong"]:
        raise SystemExit("answers were wrong: nothing is reported")
    about = {"seed": seed, "seconds": plan.seconds, "load": plan.load, "deadlines_s": DEADLINES_S, "target_s": TARGET_S}
    return {**about, "capacity_per_s": capacity, "sent_per_s": rates, **figures}


async def _under_faults(
    mesh: ChaosMesh, traffic: Traffic, rates: dict[str, float], plan: Plan, seed: int, draw: random.Random
) -> list[Event]:
    done = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(traffic.send(rates, seed, done))
        try:
            return await disturb(mesh, faults(mesh, draw, plan.only), draw, plan.seconds, _tell)
        finally:
            done.set()


def _rounded(rates: dict[str, float]) -> dict[str, float]:
    return {kind: round(rate, 2) for kind, rate in rates.items()}


def _tell(event: Event) -> None:
    console.print(f"{event.fault.kind} of {event.fault.part}: whole again after {event.whole_s - event.began_s:.1f} s")


def _say(name: str, line: str) -> None:
    if " ERROR " in line or "Traceback" in line:
        console.print(f"  {name}: {line}", markup=False, style="dim")


def main(
    quick: Annotated[bool, typer.Option(help="a minute, to see that it runs; no figure of it means anything")] = False,
    seconds: Annotated[float, typer.Option(help="under faults; 0: as is usual", min=0)] = 0.0,
    load: Annotated[float, typer.Option(help="of what was measured", min=0.01, max=2)] = LOAD,
    restart: Annotated[bool, typer.Option("--restart", help="one rolling restart and nothing else")] = False,
    seed: int = 1,
) -> None:
    """Runs the mesh under faults and writes benchmarks/results/chaos.json."""
    plan = QUICK if quick else RESTART if restart else Plan()
    plan = replace(plan, seconds=seconds or plan.seconds, load=load)
    figures = asyncio.run(measure(plan, seed))
    kind = "chaos-restart" if restart else "chaos"
    name = "chaos-quick" if quick else kind if load == LOAD else f"{kind}-{load:g}"
    console.print(f"written to {write(name, {'quick': quick, **figures})}")


app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
app.command()(main)

if __name__ == "__main__":
    app()
