"""Every policy at every load on one worker, with the same arrivals for all."""

import random
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from rich.console import Console

from benchmarks.experiment.arrivals import LOADS, SPIKE, Arrival, Mix, Profile, arrivals, bursty, spike, steady, times
from benchmarks.experiment.bound import bound
from benchmarks.experiment.capacity import Capacity, Effort, measure
from benchmarks.experiment.exhaustive import gaps
from benchmarks.experiment.generator import Send, closed_loop, open_loop, unhurried
from benchmarks.experiment.host import HostSpeed, rounds_now
from benchmarks.experiment.records import Record
from benchmarks.experiment.summary import summarise
from benchmarks.experiment.worker import Cores, RunningWorker, running, split_cores
from headway.client import AsyncHeadway

console = Console(width=140)
BURSTY_LOAD = 0.9
MOST_LATE_MS = 10.0
WARM_S = 2.0
"""A worker learns how quick its host is now before anything is counted."""
SPIKE_PRIORITIES = (("high", 0.2), ("normal", 0.6), ("low", 0.2))
"""In the spike somebody has to give way; steady and bursty runs send what the subject's mix says."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy under test: flags of the worker, and the share of the steady cells' requests that it is sent."""

    name: str
    flags: tuple[str, ...] = ()
    share: float = 1.0
    shapes: bool = True
    """Whether it is sent the spike and the bursty run too."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that is not ours, sent the same arrivals."""

    name: str
    start: Callable[[Cores], AbstractAsyncContextManager[Send]]
    """Runs it on the worker's cores; what it gives sends it a request and ignores the client that it is given."""
    share: float = 0.5


@dataclass(frozen=True, slots=True)
class Subject:
    """A kind of work under test."""

    kind: str
    """Names the files: `benchmarks/results/KIND.json`."""
    items: str
    """What a request's items are, in words."""
    command: tuple[str, ...]
    """Starts the worker; `worker.running` adds where it serves and its threads."""
    send: Send
    mix: Mix
    golden: Callable[[AsyncHeadway], Awaitable[bytes]]
    """The bytes of one fixed request at one fixed rung: every contender must give the same."""
    lowest: str | None = None
    """The lowest rung that requests allow; None: the ladder's."""

    def rungs(self, worker: RunningWorker) -> Sequence[tuple[str, float]]:
        """(label, quality) of the rungs that are asked for, best first."""
        labels = [label for label, _ in worker.rungs]
        return worker.rungs if self.lowest is None else worker.rungs[: labels.index(self.lowest) + 1]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    loads: tuple[float, ...] = LOADS
    requests: int = 3000
    """Of a steady cell, before `Contender.share`."""
    most_cell_s: float = 60.0
    """No steady cell is longer: at low loads fewer requests are sent."""
    shape_s: float = 30.0
    """Length of the spike and of the bursty run."""
    effort: Effort = field(default_factory=Effort)
    seed: int = 1
    gap_instances: int = 40


@dataclass(frozen=True, slots=True)
class Cell:
    """One policy under one load: its figures, and the records that they came from."""

    contender: str
    shape: str
    load: float
    figures: dict[str, Any]
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """All cells of one run."""

    capacity: Capacity
    cells: tuple[Cell, ...]
    about: dict[str, Any]

    def cell(self, contender: str, shape: str, load: float) -> Cell | None:
        wanted = (contender, shape, load)
        return next((cell for cell in self.cells if (cell.contender, cell.shape, cell.load) == wanted), None)

    def contenders(self) -> list[str]:
        return list(dict.fromkeys(cell.contender for cell in self.cells))

    def loads(self) -> list[float]:
        return sorted({cell.load for cell in self.cells if cell.shape == "steady"})

    def as_dict(self) -> dict[str, Any]:
        rows = [
            {"contender": cell.contender, "shape": cell.shape, "load": cell.load, **cell.figures} for cell in self.cells
        ]
        return {**self.about, "capacity": self.capacity.as_dict(), "cells": rows}


async def run(subject: Subject, contenders: Sequence[Contender], plan: Plan, peers: Sequence[Peer] = ()) -> Results:
    """Measures capacity with the first contender, then sends every contender and peer the same arrivals.

    Raises SystemExit when the contenders disagree on what the same request at the same rung is: nothing is reported.
    """
    cores, golden, cells = split_cores(), dict[str, bytes](), list[Cell]()
    host = HostSpeed(partial(rounds_now, cores))
    with tempfile.TemporaryDirectory(prefix="headway-calibration-") as calibrations:
        subject = replace(subject, command=(*subject.command, "--cache-dir", calibrations))
        await host.since_last()
        capacity, described = await _capacity(subject, contenders[0], plan, cores)
        await host.since_last()
        sends = _sends(subject.mix, capacity, plan)
        for contender in contenders:
            async with (
                running((*subject.command, *contender.flags), cores) as worker,
                AsyncHeadway(worker.address) as client,
            ):
                golden[contender.name] = await subject.golden(client)
                await closed_loop(
                    subject.send, client, subject.mix.sizes, subject.rungs(worker)[-1][0], in_flight=4, seconds=WARM_S
                )
                for shape, load, sent in sends if contender.shapes else [each for each in sends if each[0] == "steady"]:
                    cell = await _cell(subject, contender, (shape, load, sent), worker, client)
                    cells.append(_beside_bound(cell, capacity, await host.since_last()))
                    _say(cells[-1])
        for peer in peers:
            async for cell in _peer_cells(subject, peer, sends, cores):
                cells.append(_beside_bound(cell, capacity, await host.since_last()))
                _say(cells[-1])
    if len(set(golden.values())) != 1:
        raise SystemExit("the contenders do not give the same bytes for the same request: nothing is reported")
    results = Results(capacity, tuple(cells), {**described, **_about(subject, plan, cores, capacity)})
    results.about["generator_late"] = late_cells(results)
    for line in results.about["generator_late"]:
        console.print(f"[red]not an open loop, the generator was late: {line}")
    return results


async def _peer_cells(
    subject: Subject, peer: Peer, sends: Sequence[tuple[str, float, list[Arrival]]], cores: Cores
) -> AsyncIterator[Cell]:
    """A peer's cells, after a few requests to warm it up. It has no refusals to time and no rungs to be golden at."""
    async with peer.start(cores) as send, AsyncHeadway("127.0.0.1:9") as nobody:
        await open_loop(send, nobody, [unhurried(number, size) for number, size in enumerate(subject.mix.sizes)])
        for shape, load, planned in sends:
            sent = planned[: max(1, round(peer.share * len(planned)))] if shape == "steady" else planned
            records = await open_loop(send, nobody, sent)
            yield Cell(peer.name, shape, load, summarise(records), tuple(records))


async def _capacity(
    subject: Subject, contender: Contender, plan: Plan, cores: Cores
) -> tuple[Capacity, dict[str, Any]]:
    command = (*subject.command, *contender.flags)
    async with running(command, cores) as worker, AsyncHeadway(worker.address) as client:
        capacity = await measure(subject.send, client, subject.mix, subject.rungs(worker), plan.effort)
    rates = ", ".join(f"{label}: {rate:.0f}" for label, rate in capacity.items_per_s)
    console.print(f"{subject.kind}: {subject.items} a second with batching, by rung: {rates}")
    console.print(f"load 1.0 is {capacity.requests_per_s(subject.mix):.2f} requests a second")
    return capacity, {"worker": dict(worker.described)}


def _sends(mix: Mix, capacity: Capacity, plan: Plan) -> list[tuple[str, float, list[Arrival]]]:
    """(shape, load, arrivals) of every cell; the same for all contenders."""
    rate_per_s, draw = capacity.requests_per_s(mix), random.Random(plan.seed)
    mixed = replace(mix, priorities=SPIKE_PRIORITIES)
    shapes: list[tuple[str, float, Profile, Mix]] = [
        ("steady", load, steady(load, min(plan.most_cell_s, plan.requests / (rate_per_s * load))), mix)
        for load in plan.loads
    ]
    if plan.shape_s > 0:
        shapes.append(("spike", SPIKE, spike(plan.shape_s), mixed))
        shapes.append(("bursty", BURSTY_LOAD, bursty(BURSTY_LOAD, plan.shape_s, draw), mix))
    return [
        (shape, load, arrivals(times(profile, rate_per_s, draw), asked, capacity.solo_ms, draw))
        for shape, load, profile, asked in shapes
    ]


async def _cell(
    subject: Subject,
    contender: Contender,
    send: tuple[str, float, list[Arrival]],
    worker: RunningWorker,
    client: AsyncHeadway,
) -> Cell:
    shape, load, planned = send
    share = contender.share if shape == "steady" else 1.0
    before = await worker.refusals()
    records = await open_loop(subject.send, client, planned[: max(1, round(share * len(planned)))])
    after = await worker.refusals()
    figures = summarise(records)
    figures["refusal_at_entry"] = at_entry({bound_s: after[bound_s] - before.get(bound_s, 0.0) for bound_s in after})
    return Cell(contender.name, shape, load, figures, tuple(records))


def at_entry(counts: dict[float, float]) -> dict[str, float | None]:
    """What the worker's own histogram of refusals says, timed from its handlers' entry on."""
    bounds = sorted(counts)
    total = counts[bounds[-1]] if bounds else 0.0
    if not total:
        return {"n": 0, "p95_at_most_ms": None, "share_under_5_ms": None}
    p95_s = next(bound_s for bound_s in bounds if counts[bound_s] >= 0.95 * total)
    return {"n": total, "p95_at_most_ms": p95_s * 1000, "share_under_5_ms": counts.get(0.005, 0.0) / total}


def _beside_bound(cell: Cell, capacity: Capacity, speed: float) -> Cell:
    """`speed`: the host's around the cell, over what it was when capacity was measured."""
    most = bound([capacity.window(record.arrival, speed) for record in cell.records])
    cell.figures["host_speed"] = speed
    cell.figures["bound"] = most
    cell.figures["goodput_over_bound"] = cell.figures["goodput"] / most if most else None
    return cell


def _about(subject: Subject, plan: Plan, cores: Cores, capacity: Capacity) -> dict[str, Any]:
    rates = [rate for _, rate in capacity.best_items_per_s]
    options = [(quality, 1 / rate) for (_, quality), rate in zip(capacity.qualities, rates, strict=True)]
    found = gaps(plan.gap_instances, 6, options, seed=plan.seed)
    return {
        "kind": subject.kind,
        "cores": asdict(cores),
        "mix": asdict(subject.mix),
        "plan": asdict(plan),
        "bound_gap": {"instances": len(found), "requests": 6, "mean": sum(found) / len(found), "max": max(found)},
    }


def _say(cell: Cell) -> None:
    figures = cell.figures
    kept, p95 = figures["attainment_deadline"]["share"], figures["latency_over_deadline"]["p95"]
    console.print(
        f"{cell.contender:>12} {cell.shape} {cell.load:g}: {figures['admitted']} of {figures['n']} admitted, "
        f"in time {_share(kept)}, quality {_share(figures['served_quality'])}, "
        f"goodput/bound {_share(figures['goodput_over_bound'])}, p95/deadline {_share(p95)}, "
        f"host {_share(figures['host_speed'])}"
    )


def late_cells(results: Results) -> list[str]:
    """Cells in which the generator sent requests too late to call it an open loop: the machine was not quiet."""
    return [
        f"{cell.contender} {cell.shape} {cell.load:g}: p99 {cell.figures['sent_late_ms']['p99']:.0f} ms"
        for cell in results.cells
        if (cell.figures["sent_late_ms"]["p99"] or 0.0) > MOST_LATE_MS
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
