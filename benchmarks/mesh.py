"""What the mesh promises, measured on real processes: `python -m benchmarks.mesh` (make bench).

1. Deadlines from generous to hopeless: which rung each buys, medians.
2. Admitted requests on an otherwise idle machine: how many arrive in time, with deadlines of 1.5, 3 and 6 times the
   solo cost.
3. Hopeless requests: how fast they are refused, timed by a caller beside the worker, which is more than at its entry.
4. All three kinds in flight on one device, open loop, with the device arbiter and without, in turns: how far predicted
   and actual finish lie apart, and which promises were broken. Once with each kind's own deadlines (3 and 6 times its
   solo cost, so that frames are urgent and texts patient), and once with the same deadlines for all (3 and 6 times the
   dearest kind's). Nothing is reported when the two meshes give different bytes for the same request.
   With the arbiter also how late the workers' event loops ran meanwhile.
5. `kill -9` of each worker: how long until the router reports it lost, and until it is in again.
"""

import asyncio
import os
import random
import signal
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.asks import ASKS, Outcome, ask
from benchmarks.figures import interval, quantile, share_interval, write
from benchmarks.rig import Mesh, mesh
from headway.client import AsyncHeadway
from headway.requests import service_level
from headway.v1 import common_pb2, router_pb2

console = Console(width=120)
WORKERS = {"text": "text-worker", "image": "dit-worker", "splat": "splat-worker"}
FACTORS = (4.0, 2.0, 1.2, 0.9, 0.7, 0.5, 0.35, 0.2, 0.1)
DEADLINE_FACTORS = (1.5, 3.0, 6.0)
GENEROUS_MS = 20_000.0
MIX_LOAD = 0.3
"""Share of the device that each kind is sent, at its top rung."""


async def solo_ms(kind: str, client: AsyncHeadway) -> float:
    """What a request takes alone at the top rung, on the caller's clock: the median of 15 after 3 to warm up."""
    seen = [await ask(kind, client, seed, GENEROUS_MS) for seed in range(18)]
    return statistics.median(outcome.elapsed_ms for outcome in seen[3:])


async def ladder(kind: str, client: AsyncHeadway, solo: float, repeats: int) -> list[dict[str, Any]]:
    """Section 1."""
    rows = []
    for factor in FACTORS:
        outcomes = [await ask(kind, client, seed, max(1.0, factor * solo)) for seed in range(repeats)]
        served = [outcome for outcome in outcomes if outcome.refused is None]
        rows.append(
            {
                "deadline_over_solo": factor,
                "deadline_ms": round(factor * solo, 1),
                "rungs": Counter(outcome.rung for outcome in served),
                "median_steps": statistics.median([outcome.steps for outcome in served]) if served else None,
                "median_quality": statistics.median([outcome.quality for outcome in served]) if served else None,
                "in_time": sum(outcome.in_time for outcome in served),
                "refused": Counter(outcome.refused for outcome in outcomes if outcome.refused),
                "n": len(outcomes),
            }
        )
    return rows


async def attainment(kind: str, client: AsyncHeadway, solo: float, count: int) -> dict[str, Any]:
    """Section 2."""
    draw = random.Random(1)
    outcomes = [await ask(kind, client, seed, draw.choice(DEADLINE_FACTORS) * solo) for seed in range(count)]
    admitted = [outcome for outcome in outcomes if outcome.admitted]
    missed = [outcome for outcome in admitted if not outcome.in_time]
    errors_ms = [outcome.actual_ms - outcome.predicted_p50_ms for outcome in admitted if outcome.refused is None]
    return {
        "n": len(outcomes),
        "admitted": len(admitted),
        "missed": len(missed),
        "missed_share_95": share_interval(len(missed), len(admitted)),
        "median_finish_error_ms": statistics.median(errors_ms) if errors_ms else None,
    }


async def refusal(kind: str, client: AsyncHeadway, solo: float, count: int) -> dict[str, Any]:
    """Section 3: half of what the cheapest rung needs, and never less than the return reserve."""
    hopeless_ms = max(6.5, 0.05 * solo)
    exact = service_level(exact=await _top_rung(kind, client))
    outcomes = [await ask(kind, client, seed, hopeless_ms, exact) for seed in range(count)]
    times_ms = [outcome.elapsed_ms for outcome in outcomes if outcome.refused == "BUDGET_TOO_SMALL"]
    return {
        "n": len(outcomes),
        "refused": len(times_ms),
        "p50_ms": quantile(times_ms, 0.5),
        "p95_ms": quantile(times_ms, 0.95),
        "p95_ms_95": interval(times_ms, lambda values: quantile(values, 0.95)),
    }


async def _top_rung(kind: str, client: AsyncHeadway) -> str:
    if kind == "text":
        return (await client.text_models()).models[0].ladder.rungs[0].label
    if kind == "image":
        return (await client.image_models()).models[0].ladder.rungs[0].label
    return (await client.scenes()).scenes[0].ladder.rungs[0].label


async def mixed(
    clients: dict[str, AsyncHeadway], solos: dict[str, float], seconds: float, seed: int, *, same: bool
) -> list[Outcome]:
    """Section 4: Poisson arrivals of each kind, open loop."""
    draw, dearest = random.Random(seed), max(solos.values())
    async with asyncio.TaskGroup() as tasks:
        sent = []
        for kind, solo in solos.items():
            at_s = draw.expovariate(MIX_LOAD / (solo / 1000))
            while at_s < seconds:
                deadline_ms = draw.choice(DEADLINE_FACTORS[1:]) * (dearest if same else solo)
                sent.append(tasks.create_task(_later(at_s, kind, clients[kind], len(sent), deadline_ms)))
                at_s += draw.expovariate(MIX_LOAD / (solo / 1000))
    return [task.result() for task in sent]


async def _later(at_s: float, kind: str, client: AsyncHeadway, seed: int, deadline_ms: float) -> Outcome:
    await asyncio.sleep(at_s)
    return await ask(kind, client, seed, deadline_ms)


def apart(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """How far predicted and actual finish lie apart, and what was kept.

    Texts that ended by themselves are left out of the first: how long a text becomes is not predicted yet.
    """
    admitted = [outcome for outcome in outcomes if outcome.admitted]
    served = [outcome for outcome in admitted if outcome.refused is None]
    whole = [outcome for outcome in served if not outcome.ended_itself]
    errors_ms = [abs(outcome.actual_ms - outcome.predicted_p50_ms) for outcome in whole]
    within = sum(outcome.actual_ms <= outcome.predicted_p99_ms for outcome in whole)
    missed = sum(not outcome.in_time for outcome in admitted)
    return {
        "n": len(outcomes),
        "admitted": len(admitted),
        "missed": missed,
        "missed_share_95": share_interval(missed, len(admitted)),
        "median_error_ms": statistics.median(errors_ms),
        "median_error_ms_95": interval(errors_ms),
        "p95_error_ms": quantile(errors_ms, 0.95),
        "within_predicted_p99": within / len(whole),
        "ended_by_themselves": len(served) - len(whole),
        "goodput_quality": sum(outcome.quality for outcome in served if outcome.in_time) / len(outcomes),
    }


async def kills(running: Mesh) -> dict[str, dict[str, float]]:
    """Section 5, seen by a caller of the router who asks every few ms."""
    found = {}
    async with AsyncHeadway(running.addresses["router"]) as router:
        for kind, name in WORKERS.items():
            os.kill(running.supervisor.pids[name], signal.SIGKILL)
            start_s = time.perf_counter()
            lost_s = await _until(router, kind, router_pb2.WORKER_HEALTH_LOST, start_s)
            back_s = await _until(router, kind, router_pb2.WORKER_HEALTH_HEALTHY, start_s)
            found[kind] = {"reported_lost_s": lost_s, "in_again_s": back_s}
    return found


async def _until(router: AsyncHeadway, kind: str, health: router_pb2.WorkerHealth, start_s: float) -> float:
    wanted = common_pb2.Kind.Value(f"KIND_{kind.upper()}")
    while True:
        workers = (await router.workers()).workers
        if any(worker.kind == wanted and worker.health == health for worker in workers):
            return time.perf_counter() - start_s
        await asyncio.sleep(0.005)


async def alone(clients: dict[str, AsyncHeadway], repeats: int, count: int) -> dict[str, Any]:
    """Sections 1 to 3, one kind after the other."""
    figures: dict[str, Any] = {"ladder": {}, "attainment": {}, "refusal": {}, "solo_ms": {}}
    for kind, client in clients.items():
        solo = figures["solo_ms"][kind] = await solo_ms(kind, client)
        console.print(f"{kind}: {ASKS[kind].what} alone at the top rung: {solo:.1f} ms")
        figures["ladder"][kind] = await ladder(kind, client, solo, repeats)
        figures["attainment"][kind] = await attainment(kind, client, solo, count)
        figures["refusal"][kind] = await refusal(kind, client, solo, count)
    return figures


async def measure(seconds: float, repeats: int, count: int) -> dict[str, Any]:
    """All five sections; about `4 * seconds` plus a few minutes."""
    figures: dict[str, Any] = {}
    mixes: dict[str, list[Outcome]] = defaultdict(list)
    golden: dict[str, dict[str, bytes]] = {}
    for turn, name in enumerate(("arbiter", "none", "none", "arbiter")):
        async with mesh(arbiter=name == "arbiter") as running:
            clients = {kind: AsyncHeadway(running.addresses[worker]) for kind, worker in WORKERS.items()}
            warm = {kind: await solo_ms(kind, client) for kind, client in clients.items()}
            golden[name] = {kind: await _golden(kind, client) for kind, client in clients.items()}
            figures = figures or await alone(clients, repeats, count)
            console.print(f"three kinds at once, {name}; alone they take now", warm)
            for deadlines in ("own", "same"):
                sent = await mixed(clients, figures["solo_ms"], seconds, seed=turn // 2, same=deadlines == "same")
                mixes[f"{deadlines} deadlines, {name}"] += sent
            if turn == 0:
                lag = "headway_event_loop_lag_p99_seconds"
                figures["event_loop_lag_p99_s"] = {part: await running.metric(part, lag) for part in WORKERS.values()}
            if turn == 3:
                figures["kills"] = await kills(running)
            for client in clients.values():
                await client.close()
    if golden["arbiter"] != golden["none"]:
        raise SystemExit("the two meshes do not give the same bytes for the same request: nothing is reported")
    mixes = dict(sorted(mixes.items()))
    figures["mixed"] = {name: apart(outcomes) for name, outcomes in mixes.items()}
    figures["mixed_by_kind"] = {
        name: {kind: apart([each for each in outcomes if each.kind == kind]) for kind in WORKERS}
        for name, outcomes in mixes.items()
    }
    return figures


async def _golden(kind: str, client: AsyncHeadway) -> bytes:
    level = service_level(exact=await _top_rung(kind, client))
    return (await ask(kind, client, 7, GENEROUS_MS, level)).payload


def show(figures: dict[str, Any]) -> None:
    """Prints the tables."""
    for kind, rows in figures["ladder"].items():
        table = Table(title=f"{kind}: what a deadline buys (solo {figures['solo_ms'][kind]:.0f} ms)")
        for column in ("deadline / solo", "ms", "rungs", "median steps", "median quality", "in time", "refused"):
            table.add_column(column)
        for row in rows:
            quality = "" if row["median_quality"] is None else f"{row['median_quality']:.2f}"
            table.add_row(
                f"{row['deadline_over_solo']:g}",
                f"{row['deadline_ms']:.0f}",
                _counts(row["rungs"]),
                str(row["median_steps"] or ""),
                quality,
                f"{row['in_time']} of {sum(row['rungs'].values())}",
                _counts(row["refused"]),
            )
        console.print(table)
    for kind in ASKS:
        kept, refused = figures["attainment"][kind], figures["refusal"][kind]
        low, high = kept["missed_share_95"]
        console.print(
            f"{kind}: {kept['missed']} of {kept['admitted']} admitted were late (95 %: {low:.2%} to {high:.2%}); "
            f"{refused['refused']} hopeless ones refused in {refused['p50_ms']:.2f} ms, p95 {refused['p95_ms']:.2f} ms"
        )
    table = Table(title=f"three kinds at once, each at {MIX_LOAD:g} of the device")
    columns = ("deadlines, arbiter", "kind", "|actual - predicted|", "p95", "in predicted p99", "late", "refused")
    for column in columns:
        table.add_column(column)
    for name, row in figures["mixed"].items():
        for kind, each in {"all": row, **figures["mixed_by_kind"][name]}.items():
            table.add_row(
                name if kind == "all" else "",
                kind,
                f"{each['median_error_ms']:.1f} ms",
                f"{each['p95_error_ms']:.0f} ms",
                f"{each['within_predicted_p99']:.1%}",
                f"{each['missed']} of {each['admitted']}",
                str(each["n"] - each["admitted"]),
            )
    console.print(table)
    for deadlines in ("own", "same"):
        rows = [figures["mixed"][f"{deadlines} deadlines, {name}"] for name in ("none", "arbiter")]
        ratio = rows[0]["median_error_ms"] / rows[1]["median_error_ms"]
        console.print(f"{deadlines} deadlines: the median error without the arbiter is {ratio:.2f} times that with it")
    for kind, times in figures["kills"].items():
        console.print(
            f"kill -9 of the {kind} worker: reported lost after {times['reported_lost_s'] * 1000:.0f} ms, "
            f"in again after {times['in_again_s']:.1f} s"
        )
    lags = ", ".join(f"{part} {lag_s * 1000:.1f} ms" for part, lag_s in figures["event_loop_lag_p99_s"].items())
    console.print(f"event loop lag with three kinds at once, p99: {lags}")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} x{count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def main(seconds: float = 30.0, repeats: int = 21, count: int = 300) -> None:
    """Measures the mesh and writes benchmarks/results/mesh.json."""
    figures = asyncio.run(measure(seconds, repeats, count))
    show(figures)
    console.print(f"written to {write('mesh', figures)}")


if __name__ == "__main__":
    typer.run(main)
