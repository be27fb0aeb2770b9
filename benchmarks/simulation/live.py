"""The same arrivals to two real image workers behind a real router, and to their simulation: side by side.

The simulation knows of the workers what they tell everybody: rungs from `Describe`, step costs and the largest batch
from `Watch`; and what a request alone takes beside its steps. Each worker has one thread on a core of its own, without
an arbiter; router and generator run beside them, so that this wants more than two cores, or a model that is slow.
"""

import asyncio
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console
from rich.table import Table

from benchmarks.experiment.arrivals import Arrival, arrivals, steady, times
from benchmarks.experiment.capacity import Capacity, Effort, measure
from benchmarks.experiment.generator import open_loop
from benchmarks.experiment.records import Record
from benchmarks.experiment.runner import Subject
from benchmarks.experiment.summary import summarise
from benchmarks.experiment.worker import Cores, RunningWorker, running
from benchmarks.images import default_model, subject
from benchmarks.simulation.cluster import Cluster, play
from benchmarks.simulation.host import Noise
from benchmarks.simulation.models import ImageModel
from benchmarks.simulation.router import Request
from headway.client import AsyncHeadway
from headway.cost import Cost, StepCurve
from headway.errors import HeadwayError
from headway.requests import service_level
from headway.v1 import common_pb2, router_pb2, worker_pb2, worker_pb2_grpc
from services.dit_worker.model.checkpoint import read_config
from services.router.view import read_description, read_report

WORKERS = 2
LOADS = (0.6, 1.2)
START_S = 60.0


@dataclass(frozen=True, slots=True)
class Side:
    """One load, live or simulated."""

    load: float
    side: str
    n: int
    admitted: int
    attainment: float | None
    """Of those admitted, by the deadline."""
    refused: dict[str, int]
    rungs: dict[str, float]
    """Shares of those answered."""
    goodput_per_request: float


async def validate(seconds: float, model: Path | None = None) -> dict[str, Any]:
    """Takes about a minute beside twice `seconds`. Raises RuntimeError when a process does not come up."""
    model = model or default_model()
    under_test = subject(model, read_config(model).topology.classes)
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(_worker(under_test, core)) for core in range(WORKERS)]
        async with AsyncHeadway(workers[0].address) as client:
            capacity = await measure(under_test.send, client, under_test.mix, workers[0].rungs, Effort(9, 2.0))
        known = await image_model(workers[0].address, capacity, under_test.mix.sizes)
        router = await stack.enter_async_context(_router([worker.address for worker in workers]))
        sides = [side for load in LOADS for side in await _both(under_test, router, capacity, known, load, seconds)]
    return {"model": model.name, "capacity": capacity.as_dict(), "sides": [asdict(side) for side in sides]}


async def _both(
    under_test: Subject, router: AsyncHeadway, capacity: Capacity, known: ImageModel, load: float, seconds: float
) -> tuple[Side, Side]:
    draw = random.Random(f"validate {load}")
    at_s = times(steady(load, seconds), WORKERS * capacity.requests_per_s(under_test.mix), draw)
    sent = arrivals(at_s, under_test.mix, capacity.solo_ms, draw)
    records = await open_loop(under_test.send, router, sent)
    cluster = Cluster({known: WORKERS}, noise=Noise(known.spread))
    outcome = await asyncio.to_thread(play, cluster, [_request(known, arrival) for arrival in sent])
    counts = outcome.tally.all
    simulated = Side(
        load, "simulated", counts.asked, counts.admitted, counts.in_time / max(1, counts.admitted),
        dict(counts.refused), _shares(counts.rungs), counts.goodput / max(1, counts.asked),
    )  # fmt: skip
    return _live(load, records), simulated


def _live(load: float, records: Sequence[Record]) -> Side:
    figures = summarise(records)
    return Side(
        load, "live", figures["n"], figures["admitted"], figures["attainment_deadline"]["share"],
        figures["refused"], _shares(figures["rungs"]), figures["goodput_per_request"],
    )  # fmt: skip


def _shares(counts: dict[Any, int]) -> dict[str, float]:
    return {str(name): count / sum(counts.values()) for name, count in sorted(counts.items())}


def _request(model: ImageModel, arrival: Arrival) -> Request:
    level = service_level(priority=arrival.priority)
    deadline_s = arrival.at_s + arrival.deadline_ms / 1000
    priority, items, at_s = arrival.priority, arrival.items, arrival.at_s
    return Request(arrival.index + 1, model, items, level, priority, "everyone", at_s, deadline_s, b"")


async def image_model(address: str, capacity: Capacity, sizes: Sequence[int]) -> ImageModel:
    """What a worker tells of itself. Raises `BadReport`, and `AioRpcError` when it does not answer."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = worker_pb2_grpc.WorkerStub(channel)
        described = await stub.Describe(worker_pb2.DescribeRequest(), timeout=START_S)
        watching = stub.Watch(worker_pb2.WatchWorkerRequest(), timeout=START_S)
        state = await watching.read()
        watching.cancel()
    ladder = read_description(described, common_pb2.KIND_IMAGE).assets[0].ladder
    report = read_report(state, 0.0)
    step, steps = report.general, ladder.top.nfe or 1
    beside = [
        (items, Cost(max(0.0, solo_ms - steps * step.step(items, report.max_batch).mean_ms)))
        for items, solo_ms in capacity.solo
    ]
    largest = step.points[-1][1]
    spread = largest.var_ms2**0.5 / largest.mean_ms
    return ImageModel(step, ladder, tuple(sizes), report.max_batch, spread, encode=StepCurve(tuple(beside)))


@asynccontextmanager
async def _worker(under_test: Subject, core: int) -> AsyncIterator[RunningWorker]:
    with tempfile.TemporaryDirectory(prefix="headway-calibration-") as calibrations:
        async with running((*under_test.command, "--cache-dir", calibrations), Cores((core,), None)) as worker:
            yield worker


@asynccontextmanager
async def _router(workers: Sequence[str]) -> AsyncIterator[AsyncHeadway]:
    """A router over these workers, and a client of it once all are healthy."""
    with tempfile.TemporaryDirectory(prefix="headway-router-") as folder:
        listen, flags = f"unix:{folder}/router.sock", ",".join(f"dit={address}" for address in workers)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.router.main", "--listen", listen, "--workers", flags,
            "--metrics-port", "0", "--log-level", "warning",
        )  # fmt: skip
        try:
            async with AsyncHeadway(listen) as client:
                async with asyncio.timeout(START_S):
                    await _all_healthy(client, len(workers), process)
                yield client
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _all_healthy(client: AsyncHeadway, count: int, process: asyncio.subprocess.Process) -> None:
    while process.returncode is None:
        try:
            entries = (await client.workers()).workers
        except (HeadwayError, grpc.aio.AioRpcError):  # it does not listen yet
            entries = []
        if sum(entry.health == router_pb2.WORKER_HEALTH_HEALTHY for entry in entries) == count:
            return
        await asyncio.sleep(0.1)
    raise RuntimeError(f"the router ended with code {process.returncode} before its workers were healthy")


def show(found: dict[str, Any], console: Console) -> None:
    """Prints both sides of every load."""
    table = Table(title=f"live and simulated: {WORKERS} workers with {found['model']}")
    for heading in ("load", "", "asked", "admitted", "in time of admitted", "refused", "rungs", "goodput / asked"):
        table.add_column(heading)
    for side in found["sides"]:
        kept = "-" if side["attainment"] is None else f"{side['attainment']:.1%}"
        refused = ", ".join(f"{name} {count}" for name, count in sorted(side["refused"].items()))
        rungs = ", ".join(f"{name}: {share:.0%}" for name, share in side["rungs"].items())
        table.add_row(
            f"{side['load']:g}", side["side"], str(side["n"]), str(side["admitted"]), kept, refused, rungs,
            f"{side['goodput_per_request']:.3f}",
        )  # fmt: skip
    console.print(table)
