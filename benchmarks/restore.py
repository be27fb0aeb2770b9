"""Restoring a prefix from Redis against computing it: `python -m benchmarks.restore`, about 4 minutes.

`--quick` takes a look in about a minute. One engine computes prompts of 384 tokens and one more, and writes their
blocks; another one, which never saw them, is asked for them, for others that nobody computed, and for those again. It
times first tokens: with asking, fetching, checking and taking in, and in all of them the last token's step.
Sides alternate in one run, over the worker's own loop and store clients, straight from Redis and through the prefix
cache's service. Here everything is written and asked for, whatever the cost model thinks of it; what it thinks is told.
Nobody waits for a prompt's blocks longer than computing them takes: where that happens in most rounds, the path is told
to be slower than computing. The checkpoint has the 110M shape and random weights. It refuses to report when a token
differs.
"""

import asyncio
import hashlib
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from benchmarks.figures import interval, write
from benchmarks.text_engine import Engine, new_sequence
from benchmarks.text_workloads import SHAPE, make_checkpoint
from headway.cost import Cost
from headway.local_redis import LocalRedis
from headway.prefix import BLOCK_TOKENS
from headway.telemetry import Metrics, SharedBlock
from headway.ticket import Finished
from headway.upstream import Connection, UpstreamCredentials
from services.text_worker.cpu.compiled import share_torch_threads
from services.text_worker.kv.transfer import Layout
from services.text_worker.sequence import Delta
from services.text_worker.sharing.learned import RestoreCosts
from services.text_worker.sharing.mesh_store import MeshStore
from services.text_worker.sharing.redis_store import RedisStore
from services.text_worker.sharing.restoring import Restorer
from services.text_worker.sharing.start import Sharing
from services.text_worker.sharing.stores import BlockStore
from services.text_worker.sharing.watching import StoreWatch
from services.text_worker.sharing.writing import BlockWriter, WritePolicy

PREFIX_TOKENS = 384
BLOCKS = PREFIX_TOKENS // BLOCK_TOKENS
KINDS = ("fp32", "int8")
TARGET = 5.0
REDIS_MIB = 2048
TTL_S = 3600.0
WRITING_S = 60.0
SETTLING = 20
"""Looks at the store before it is used: its first are slower than it is."""
MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TOP_PAD_": "16777216",
}
"""As `headway up` and the images set it."""

Prompt = tuple[int, ...]


class Willing(RestoreCosts):
    """Learns as usual, but writes and asks at any cost: what is measured must not depend on what comes out."""

    def saved_ms(self, blocks: int, computing: Cost) -> float:
        return math.inf

    def worth_asking(self, blocks: int, computing: Cost) -> bool:
        return self.known

    def worth_writing(self, blocks: int, computing: Cost) -> bool:
        return self.known


@dataclass
class Side:
    """One engine with its way to the store."""

    engine: Engine
    sharing: Sharing
    costs: RestoreCosts
    metrics: Metrics

    async def ask(self, prompt: Prompt) -> tuple[float, list[int], int]:
        """Milliseconds to the first token, the tokens, and how many of the prompt were not computed."""
        tokens, first_ms, began_s = list[int](), None, time.monotonic()
        sequence = new_sequence(prompt, 4, "")
        sequence.kv.chain = self.sharing.chain("bench")
        with self.sharing.prompt([sequence]):
            async with self.engine.loop.submit(sequence) as ticket:
                self.sharing.admitted(sequence)
                while not isinstance(event := await ticket.events.get(), Finished):
                    assert isinstance(event, Delta), event
                    first_ms = first_ms or (time.monotonic() - began_s) * 1000
                    tokens += event.token_ids
        assert first_ms is not None
        return first_ms, tokens, sequence.cached_tokens

    def blocks(self, result: SharedBlock) -> int:
        """So many blocks ended like this."""
        value = self.metrics.registry.get_sample_value("headway_kv_shared_blocks_total", {"result": result})
        return int(value or 0)

    def thinks_it_pays(self) -> bool:
        """Whether a worker with such a store would write the prefix for others."""
        computing = self.engine.costs.prefill_cost(PREFIX_TOKENS)
        return RestoreCosts.worth_writing(self.costs, BLOCKS, computing)


@dataclass
class Times:
    """Milliseconds to first tokens, a repetition each."""

    computed: list[float] = field(default_factory=list)
    restored: list[float] = field(default_factory=list)
    """Of what was to be restored, whether or not it came before it was given up."""
    cached: list[float] = field(default_factory=list)
    given_up: int = 0
    """Rounds in which a block did not come before it could have been computed."""

    def figures(self) -> dict[str, Any]:
        """Medians with 95 % intervals. `ratio` is that of the times to the first token, round by round.

        `ratio_beyond_cached` is that of the medians less what a prompt takes that is cached.
        """
        ratios = [computed / restored for computed, restored in zip(self.computed, self.restored, strict=True)]
        named = {"computed_ms": self.computed, "restored_ms": self.restored, "cached_ms": self.cached}
        medians = {name: statistics.median(of) for name, of in named.items()}
        spared_ms = medians["restored_ms"] - medians["cached_ms"]
        return {
            **{name: {"median": medians[name], "interval": interval(of)} for name, of in named.items()},
            "ratio": statistics.median(ratios),
            "ratio_interval": interval(ratios),
            "ratio_beyond_cached": (medians["computed_ms"] - medians["cached_ms"]) / spared_ms
            if spared_ms > 0
            else None,
            "n": len(ratios),
            "given_up": self.given_up,
        }


@contextmanager
def prefix_cache(redis_url: str, folder: Path) -> Iterator[str]:
    """The service in a process of its own; gives its address."""
    address = f"unix:{folder / 'cache.sock'}"
    command = [sys.executable, "-m", "services.prefix_cache.main", "--listen", address, "--redis", redis_url]
    process = subprocess.Popen([*command, "--metrics-port", "off"], env={**os.environ, **MALLOC})
    try:
        yield address
    finally:
        process.terminate()
        process.wait(10)


@asynccontextmanager
async def side(engine: Engine, store: BlockStore, layout: Layout) -> AsyncIterator[Side]:
    """The engine with all that shares its blocks, once it knows what its store costs."""
    metrics, clock = Metrics("bench", "0"), time.monotonic
    costs = Willing(engine.costs.taking_in, 0.9)
    watch = StoreWatch(store, layout, costs, TTL_S, clock=clock, gauge=metrics.store_reachable.labels("kv"))
    pool, wake = engine.store.pool, engine.loop.wake
    restorer = Restorer(store, watch, costs, engine.costs, pool, layout, clock=clock, wake=wake, metrics=metrics)
    policy = WritePolicy(sightings=1, bytes_per_s=float(1 << 32), ttl_s=TTL_S)
    writer = BlockWriter(
        store, watch, costs, engine.costs, engine.store, layout, policy, clock=clock, metrics=metrics
    )  # fmt: skip
    writing = asyncio.create_task(writer.run())
    for _ in range(100):
        if await watch.look():
            break
        await asyncio.sleep(0.1)  # the service may still start
    for _ in range(SETTLING):
        await watch.look()
    try:
        yield Side(engine, Sharing(restorer, writer, layout.fingerprint, None), costs, metrics)
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await restorer.close()
        await store.close()


def store_of(path: str, redis_url: str, address: str, stored_bytes: int, closing: AsyncExitStack) -> BlockStore:
    """A client of its own."""
    if path == "redis":
        return RedisStore(redis_url, stored_bytes)
    connection = Connection(address, credentials := UpstreamCredentials())
    closing.push_async_callback(connection.close)
    return MeshStore(connection, credentials)


@dataclass(frozen=True)
class Between:
    """What lies between the two engines."""

    redis_url: str
    address: str
    """Of the prefix cache."""
    repeats: int


async def measure(folder: Path, kind: Any, between: Between, console: Console) -> list[dict[str, Any]]:
    """One kind of weights over both paths; prints each as it comes."""
    found: list[dict[str, Any]] = []
    async with AsyncExitStack() as closing:
        engines = [Engine(folder, kind, measured=True) for _ in range(2)]
        for engine in engines:
            await closing.enter_async_context(engine.running())
        for path in ("redis", "grpc"):
            # Nothing is shared between two runs: their keys and values differ, or are there already.
            layout = Layout.of(engines[0].store.pages, hashlib.sha256(f"{kind} {path}".encode()).digest())
            times, pays = await measure_path(engines, path, layout, between)
            about = {"weights": kind, "path": path, "stored_bytes": layout.stored_bytes, "cost_model_would_write": pays}
            found.append({**about, **times.figures()})
            console.print(line_of(found[-1]))
    return found


async def measure_path(engines: list[Engine], path: str, layout: Layout, between: Between) -> tuple[Times, bool]:
    """Blocks go from the first engine to the second. The first round warms up and is not counted.

    With whether the cost model would have had them written.
    """
    draw, rounds = np.random.default_rng(between.repeats), between.repeats + 1
    prompts = [tuple(map(int, draw.integers(2, SHAPE["vocab_size"], PREFIX_TOKENS + 1))) for _ in range(2 * rounds)]
    async with AsyncExitStack() as closing:
        here, there = [
            await closing.enter_async_context(
                side(engine, store_of(path, between.redis_url, between.address, layout.stored_bytes, closing), layout)
            )
            for engine in engines
        ]
        expected = {prompt: (await here.ask(prompt))[1] for prompt in prompts[::2]}
        await written(here, BLOCKS * len(expected))
        warming, times = Times(), Times()
        for number, (stored, foreign) in enumerate(zip(prompts[::2], prompts[1::2], strict=True)):
            await one_round(there, stored, foreign, expected[stored], times if number else warming)
        return times, there.thinks_it_pays()


async def written(here: Side, blocks: int) -> None:
    """Waits for what is written behind. Raises RuntimeError where some of it never is."""
    given_up_s = time.monotonic() + WRITING_S
    while here.blocks(SharedBlock.WRITTEN) < blocks:
        if time.monotonic() > given_up_s:
            raise RuntimeError(f"{here.blocks(SharedBlock.WRITTEN)} of {blocks} blocks were written")
        await asyncio.sleep(0.05)


async def one_round(there: Side, stored: Prompt, foreign: Prompt, expected: list[int], times: Times) -> None:
    """Restored, computed, and one that is cached by now. Raises RuntimeError where they disagree."""
    restored_ms, tokens, cached = await there.ask(stored)
    if tokens != expected:
        raise RuntimeError(f"restored {cached} of {PREFIX_TOKENS} tokens, answered {tokens} and not {expected}")
    times.given_up += cached != PREFIX_TOKENS
    computed_ms, computed, _ = await there.ask(foreign)
    cached_ms, again, found = await there.ask(foreign)
    if again != computed or found != PREFIX_TOKENS:
        raise RuntimeError(f"a prompt that is cached answers {again} and not {computed}")
    times.restored.append(restored_ms)
    times.computed.append(computed_ms)
    times.cached.append(cached_ms)


def run(folder: Path, kinds: tuple[str, ...], repeats: int, console: Console) -> list[dict[str, Any]]:
    """Every kind over both paths; prints each as it comes."""
    found: list[dict[str, Any]] = []
    with (
        LocalRedis.start(max_memory_mib=REDIS_MIB) as server,
        tempfile.TemporaryDirectory() as spare,
        prefix_cache(server.url, Path(spare)) as address,
    ):
        for kind in kinds:
            found += asyncio.run(measure(folder, kind, Between(server.url, address, repeats), console))
    return found


def line_of(one: dict[str, Any]) -> str:
    """What a reader wants to know of one run."""
    medians = {name: one[f"{name}_ms"]["median"] for name in ("computed", "restored", "cached")}
    told = ", ".join(f"{name} {ms:.1f} ms" for name, ms in medians.items())
    beyond, of = one["ratio_beyond_cached"], f"{one['weights']}, {one['path']}"
    if one["given_up"] > one["n"] / 2:
        return f"{of}: {told}; computing is quicker: {one['given_up']} of {one['n']} rounds were not waited for"
    prefix = "immeasurably" if beyond is None else f"{beyond:.1f} times"
    return (
        f"{of}: {told}; first token {one['ratio']:.1f} times sooner, the prefix alone {prefix} (target {TARGET:g} over "
        f"redis); given up {one['given_up']} of {one['n']}; the cost model would "
        f"{'' if one['cost_model_would_write'] else 'not '}have it written"
    )


def main(
    quick: Annotated[bool, typer.Option(help="Three rounds each; nothing is kept.")] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="Where the checkpoint is, or is to be made.")] = None,
    threads: Annotated[int, typer.Option(help="Of a step.")] = os.cpu_count() or 1,
) -> None:
    """Prints the ratios, and writes benchmarks/results/restore.json."""
    console = Console()
    share_torch_threads()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as spare:
        folder = make_checkpoint(checkpoint or Path(spare) / "checkpoint")
        found = run(folder, KINDS, 3 if quick else 30, console)
    if not quick:
        figures = {"prefix_tokens": PREFIX_TOKENS, "threads": threads, "target": TARGET, "runs": found}
        console.print(f"written to {write('restore', figures)}")


if __name__ == "__main__":
    if not MALLOC.keys() <= os.environ.keys():  # read when a process starts
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.restore", *sys.argv[1:]], {**os.environ, **MALLOC})
    typer.run(main)
