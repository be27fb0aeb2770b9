"""What a hop through the router costs: `python -m benchmarks.hops [--quick]`.

Behind all of it stands a real text worker (`--engine openai`) before a server that sends a token every 25 ms on each
stream (`benchmarks.hop.paced`). Four ways to the worker, in turns, in one run: `direct`; through the `router`; through
a `bare` hop, which is grpc.aio on uvloop and passes bytes; and `pick`: the router is asked for a worker, which is
called straight. Every stream is checked token by token; with one wrong token nothing is reported.

1. `streams`: 64 at once, 128 tokens each. CPU seconds of the hop's process for 10,000 tokens, by the kernel's clock;
   and less what that takes at rest in the same time. Targets: router at most 1.0, with `pick` at most 0.06.
   The pace that was kept says whether the machine could do it at all.
2. `first token`: one stream at a time, the ways by turns: how much later the first token comes than direct; medians,
   and the interval of their difference. Target: at most 1 ms on an idle machine.
3. `held`: 1,000 streams open at once through the router, a token every 5 s on each: its memory before, while they are
   open, and after them, and then the same again: what the second time adds is what stays. Linux only.

Results: `benchmarks/results/hops.json`. About 5 minutes; `--quick` less than one, and only to see that it runs.
"""

import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.figures import interval, quantile, write
from benchmarks.hop.paced import PACE_S, SLOW, SLOW_PACE_S
from benchmarks.hop.processes import Hops, cpu_s, hops, resident_mib
from benchmarks.hop.streams import Stream, stream, together
from headway.client import AsyncHeadway

console = Console(width=140)
STREAMS, TOKENS = 64, 128
OPENING_PACES = 4
"""In which all held streams are opened: the server behind them, in Python, takes a few dozen connections a second."""
PROCESS_OF = {"direct": "worker", "router": "router", "bare": "bare", "pick": "router"}
"""Whose CPU time a way is charged."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int = 7
    rest_s: float = 5.0
    firsts: int = 150
    """First tokens that are timed for each way."""
    held: int = 1000
    held_tokens: int = 10


QUICK = Plan(rounds=1, rest_s=1.0, firsts=5, held=50, held_tokens=2)


async def streams_section(running: Hops, clients: Mapping[str, AsyncHeadway], plan: Plan) -> dict[str, Any]:
    """CPU time for 10,000 tokens, by way; the order changes with every round."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in clients}
    ways = list(clients)
    for turn in range(plan.rounds + 1):  # the first round warms up
        for name in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
            row = await _one_round(running, name, clients[name])
            if turn:
                found[name].append(row)
    at_rest = await _cores_at_rest(running, plan.rest_s)
    ways_found = {name: _summary(rows, at_rest[PROCESS_OF[name]]) for name, rows in found.items()}
    return {"cores_at_rest": at_rest, **ways_found}


async def _cores_at_rest(running: Hops, seconds: float) -> dict[str, float]:
    before_s = {part: cpu_s(pid) for part, pid in running.pids.items()}
    await asyncio.sleep(seconds)
    return {part: (cpu_s(pid) - before_s[part]) / seconds for part, pid in running.pids.items()}


async def _one_round(running: Hops, name: str, client: AsyncHeadway) -> dict[str, float]:
    pids = running.pids
    before, began_s = {part: cpu_s(pid) for part, pid in pids.items()}, time.perf_counter()
    done = await together(client, STREAMS, TOKENS, PACE_S)
    took_s, tokens = time.perf_counter() - began_s, STREAMS * TOKENS
    used = {part: (cpu_s(pid) - before[part]) * 1e4 / tokens for part, pid in pids.items()}
    return {
        "hop_cpu_s_per_10k": used[PROCESS_OF[name]],
        "worker_cpu_s_per_10k": used["worker"],
        "messages_per_token": sum(each.messages for each in done) / tokens,
        "pace_kept": (TOKENS - 1) * PACE_S / statistics.median(_after_first_s(done)),
        "first_token_ms": statistics.median(each.first_token_s for each in done) * 1000,
        "took_s": took_s,
    }


def _after_first_s(done: Sequence[Stream]) -> list[float]:
    return [each.took_s - each.first_token_s for each in done]


def _summary(rows: Sequence[Mapping[str, float]], cores_at_rest: float) -> dict[str, Any]:
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    used, resting = [row["hop_cpu_s_per_10k"] for row in rows], cores_at_rest * medians["took_s"]
    net = medians["hop_cpu_s_per_10k"] - resting * 1e4 / (STREAMS * TOKENS)
    return {**medians, "hop_cpu_s_per_10k_95": interval(used), "hop_cpu_s_per_10k_less_rest": net, "n": len(rows)}


async def first_section(clients: Mapping[str, AsyncHeadway], plan: Plan) -> dict[str, Any]:
    """The first token of one stream alone, each way by turns."""
    seen: dict[str, list[float]] = {name: [] for name in clients}
    for number in range(plan.firsts + 3):
        for name, client in clients.items():
            taken = await stream(client, 1)
            if number >= 3:
                seen[name].append(taken.first_token_s * 1000)
    figures: dict[str, Any] = {}
    for name, times_ms in seen.items():
        later_ms = [here - there for here, there in zip(times_ms, seen["direct"], strict=True)]
        figures[name] = {
            "p50_ms": quantile(times_ms, 0.5),
            "p99_ms": quantile(times_ms, 0.99),
            "later_than_direct_p50_ms": quantile(times_ms, 0.5) - quantile(seen["direct"], 0.5),
            "later_than_direct_95": interval(later_ms),
            "n": len(times_ms),
        }
    return figures


async def held_section(running: Hops, plan: Plan) -> dict[str, Any]:
    """The router's memory with many streams open, twice."""
    pid = running.pids["router"]
    rows = []
    for _ in range(2):
        async with AsyncHeadway(running.router) as client:
            before_mib = resident_mib(pid)
            held = together(client, plan.held, plan.held_tokens, OPENING_PACES * SLOW_PACE_S, SLOW)
            going = asyncio.create_task(held)
            seen_mib = await _watched(going, pid)
            done = await going
        third = max(1, len(seen_mib) // 3)
        rows.append(
            {
                "streams": len(done),
                "before_mib": before_mib,
                "most_mib": max(seen_mib),
                "early_mib": statistics.median(seen_mib[third : 2 * third] or seen_mib),
                "late_mib": statistics.median(seen_mib[2 * third :] or seen_mib),
                "after_mib": resident_mib(pid),
            }
        )
    return {"rounds": rows, "stays_mib": rows[1]["after_mib"] - rows[0]["after_mib"]}


async def _watched(going: "asyncio.Task[Any]", pid: int) -> list[float]:
    seen_mib = []
    while not going.done():
        seen_mib.append(resident_mib(pid))
        await asyncio.wait([going], timeout=0.5)
    return seen_mib


async def measure(plan: Plan) -> dict[str, Any]:
    """All three sections. Raises an ExceptionGroup with `Wrong` where an answer was wrong."""
    figures: dict[str, Any] = {}
    async with hops() as running, AsyncExitStack() as stack:
        addresses = {"direct": running.worker, "router": running.router, "bare": running.bare, "pick": running.router}
        clients = {
            name: await stack.enter_async_context(AsyncHeadway(address, direct=name == "pick"))
            for name, address in addresses.items()
        }
        figures["streams"] = await streams_section(running, clients, plan)
        figures["first_token"] = await first_section(clients, plan)
        figures["held"] = await held_section(running, plan)
    return figures


def show(figures: dict[str, Any]) -> None:
    """Prints the tables."""
    table = Table(title=f"{STREAMS} streams of {TOKENS} tokens, one every {PACE_S * 1000:g} ms on each")
    for column in ("way", "charged", "CPU s / 10k tokens", "95 %", "less rest", "messages / token", "pace kept"):
        table.add_column(column)
    for name, process in PROCESS_OF.items():
        row = figures["streams"][name]
        low, high = row["hop_cpu_s_per_10k_95"]
        used, net = f"{row['hop_cpu_s_per_10k']:.3f}", f"{row['hop_cpu_s_per_10k_less_rest']:.3f}"
        messages, pace = f"{row['messages_per_token']:.3f}", f"{row['pace_kept']:.1%}"
        table.add_row(name, process, used, f"{low:.3f} to {high:.3f}", net, messages, pace)
    console.print(table)
    at_rest = ", ".join(f"{part} {cores:.4f}" for part, cores in figures["streams"]["cores_at_rest"].items())
    console.print(f"cores at rest: {at_rest}")
    for name, row in figures["first_token"].items():
        low, high = row["later_than_direct_95"]
        console.print(
            f"first token, {name}: p50 {row['p50_ms']:.2f} ms, p99 {row['p99_ms']:.2f} ms; "
            f"{row['later_than_direct_p50_ms']:+.2f} ms to direct (95 %: {low:+.2f} to {high:+.2f})"
        )
    for row in figures["held"]["rounds"]:
        console.print(
            f"{row['streams']} streams open: {row['before_mib']:.1f} MiB before, {row['early_mib']:.1f} early, "
            f"{row['late_mib']:.1f} late, {row['most_mib']:.1f} at most, {row['after_mib']:.1f} after"
        )
    console.print(f"the second time adds {figures['held']['stays_mib']:.1f} MiB that stay")


def main(
    quick: Annotated[
        bool, typer.Option(help="less than a minute, to see that it runs; no figure means a thing")
    ] = False,
) -> None:
    """Measures the hop and writes benchmarks/results/hops.json."""
    figures = uvloop.run(measure(QUICK if quick else Plan()))
    show(figures)
    console.print(f"written to {write('hops-quick' if quick else 'hops', {'quick': quick, **figures})}")


app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
app.command()(main)

if __name__ == "__main__":
    app()
