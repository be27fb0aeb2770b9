"""Several kinds at once, every contender at every load, with the same arrivals for all; `runner` is for one kind.

Load 1.0 is an equal share of the device for each kind: a third, for three, of the rate that its cheapest allowed rung
sustains alone. The bound is over all kinds together: one device, each rung at its best batch efficiency.
"""

import asyncio
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from benchmarks.experiment.arrivals import Arrival, arrivals, steady, times
from benchmarks.experiment.bound import bound
from benchmarks.experiment.capacity import Capacity, Effort, measure
from benchmarks.experiment.generator import closed_loop, open_loop
from benchmarks.experiment.mesh import RunningMesh, running_mesh
from benchmarks.experiment.runner import MOST_LATE_MS, WARM_S, Subject
from benchmarks.experiment.summary import summarise
from benchmarks.experiment.worker import Cores, split_cores
from headway.client import AsyncHeadway

console = Console(width=140)
Subjects = Mapping[str, Subject]
"""By kind, as the router names kinds."""


@dataclass(frozen=True, slots=True)
class Rival:
    """A contender: what its workers, by kind, and its router are told beside what all are."""

    name: str
    worker_flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    router_flags: tuple[str, ...] = ()
    arbiter: bool = True
    share: float = 1.0
    """Of the arrivals of each cell."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured."""

    loads: tuple[float, ...]
    cell_s: float
    effort: Effort
    seed: int = 1


@dataclass(frozen=True, slots=True)
class MixedCell:
    """One contender under one load: figures of all kinds together, and of each."""

    rival: str
    load: float
    figures: dict[str, Any]
    by_kind: dict[str, dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        return {"contender": self.rival, "load": self.load, **self.figures, "by_kind": self.by_kind}


@dataclass(frozen=True, slots=True)
class Mixture:
    """All cells of one run."""

    capacity: Mapping[str, Capacity]
    cells: tuple[MixedCell, ...]
    cores: Cores

    def cell(self, rival: str, load: float) -> MixedCell | None:
        return next((cell for cell in self.cells if (cell.rival, cell.load) == (rival, load)), None)

    def late_cells(self) -> list[str]:
        """Cells whose generator was too late to call it an open loop: the machine was not quiet."""
        return [
            f"{cell.rival} {cell.load:g}: p99 {cell.figures['sent_late_ms']['p99']:.0f} ms"
            for cell in self.cells
            if (cell.figures["sent_late_ms"]["p99"] or 0.0) > MOST_LATE_MS
        ]


async def run_mixture(subjects: Subjects, rivals: Sequence[Rival], extent: Extent) -> Mixture:
    """Measures capacity with the first contender, then sends every one the same arrivals.

    Raises SystemExit when the contenders disagree on what the same request at the same rung is: nothing is reported.
    """
    cores, golden, cells = split_cores(), dict[str, tuple[bytes, ...]](), list[MixedCell]()
    with tempfile.TemporaryDirectory(prefix="headway-calibration-") as calibrations:
        capacity: dict[str, Capacity] = {}
        sends: list[tuple[float, dict[str, list[Arrival]]]] = []
        bounds: dict[tuple[float, int], float] = {}
        for rival in rivals:
            commands = {kind: _command(kind, subjects[kind], rival, calibrations) for kind in subjects}
            async with (
                running_mesh(commands, cores, arbiter=rival.arbiter, router_flags=rival.router_flags) as mesh,
                AsyncHeadway(mesh.router) as client,
            ):
                if not capacity:
                    capacity = await _capacity(subjects, mesh, client, extent.effort)
                    sends = _sends(subjects, capacity, extent)
                golden[rival.name] = tuple([await each.golden(client) for each in subjects.values()])
                await _warm(subjects, mesh, client)
                for load, planned in sends:
                    cells.append(await _cell(rival, load, subjects, planned, client))
                    _beside_bound(cells[-1], capacity, planned, rival.share, bounds)
                    _say(cells[-1])
    if len(set(golden.values())) != 1:
        raise SystemExit("the contenders do not give the same bytes for the same request: nothing is reported")
    return Mixture(capacity, tuple(cells), cores)


def _command(kind: str, subject: Subject, rival: Rival, calibrations: str) -> tuple[str, ...]:
    return (*subject.command, "--cache-dir", calibrations, *rival.worker_flags.get(kind, ()))


async def _capacity(subjects: Subjects, mesh: RunningMesh, client: AsyncHeadway, effort: Effort) -> dict[str, Capacity]:
    found = {}
    for kind, subject in subjects.items():
        found[kind] = await measure(subject.send, client, subject.mix, subject.rungs(mesh.workers[kind]), effort)
        rate = found[kind].requests_per_s(subject.mix)
        console.print(f"{kind}: its cheapest rung sustains {rate:.2f} requests a second alone")
    return found


def _sends(
    subjects: Subjects, capacity: Mapping[str, Capacity], extent: Extent
) -> list[tuple[float, dict[str, list[Arrival]]]]:
    """(load, arrivals by kind) of every cell; the same for all contenders."""
    found = []
    for load in extent.loads:
        by_kind = {}
        for kind, subject in subjects.items():
            draw, known = random.Random(f"{extent.seed} {load} {kind}"), capacity[kind]
            at_s = times(steady(load / len(subjects), extent.cell_s), known.requests_per_s(subject.mix), draw)
            by_kind[kind] = arrivals(at_s, subject.mix, known.solo_ms, draw)
        found.append((load, by_kind))
    return found


async def _warm(subjects: Subjects, mesh: RunningMesh, client: AsyncHeadway) -> None:
    """Workers learn how quick their host is, and what they do to each other, before anything is counted."""
    async with asyncio.TaskGroup() as tasks:
        for kind, subject in subjects.items():
            lowest = subject.rungs(mesh.workers[kind])[-1][0]
            loop = closed_loop(subject.send, client, subject.mix.sizes, lowest, in_flight=2, seconds=WARM_S)
            tasks.create_task(loop)


async def _cell(
    rival: Rival, load: float, subjects: Subjects, planned: Mapping[str, Sequence[Arrival]], client: AsyncHeadway
) -> MixedCell:
    sent = {kind: first_part(planned[kind], rival.share) for kind in subjects}
    loops = [open_loop(subject.send, client, sent[kind]) for kind, subject in subjects.items()]
    records = dict(zip(subjects, await asyncio.gather(*loops), strict=True))
    everything = [record for of_kind in records.values() for record in of_kind]
    by_kind = {kind: summarise(of_kind) for kind, of_kind in records.items()}
    return MixedCell(rival.name, load, summarise(everything), by_kind)


def first_part(planned: Sequence[Arrival], share: float) -> list[Arrival]:
    """Those of the first part of the time, so that the load stays the same."""
    last_s = planned[-1].at_s if planned else 0.0
    return [arrival for arrival in planned if arrival.at_s <= share * last_s]


def _beside_bound(
    cell: MixedCell,
    capacity: Mapping[str, Capacity],
    planned: Mapping[str, Sequence[Arrival]],
    share: float,
    bounds: dict[tuple[float, int], float],
) -> None:
    """Mutates the cell's figures. Contenders who were sent the same have the same bound."""
    key = (cell.load, cell.figures["n"])
    if key not in bounds:
        bounds[key] = shared_bound(capacity, {kind: first_part(sent, share) for kind, sent in planned.items()})
    most = bounds[key]
    cell.figures["bound"] = most
    cell.figures["goodput_over_bound"] = cell.figures["goodput"] / most if most else None


def shared_bound(capacity: Mapping[str, Capacity], sent: Mapping[str, Sequence[Arrival]]) -> float:
    """The most quality that a schedule of all kinds on one device could give."""
    return bound([capacity[kind].window(arrival) for kind, of_kind in sent.items() for arrival in of_kind])


def _say(cell: MixedCell) -> None:
    figures = cell.figures
    late = figures["attainment_deadline"]
    over = figures["goodput_over_bound"]
    console.print(
        f"{cell.rival:>14} {cell.load:g}: {figures['admitted']} of {figures['n']} admitted, {late['missed']} late, "
        f"goodput/bound {'-' if over is None else f'{over:.3f}'}"
    )
