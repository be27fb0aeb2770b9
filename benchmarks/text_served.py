"""What gRPC and the router cost a text: `python -m benchmarks.text_served`, about 3 minutes; `--quick` in one.

Workload W1 of `benchmarks.text` on the same random checkpoint in int8, in turns through the engine's own interface in
this process, straight to a worker, and to a worker through a router. Nothing is reported when a token differs: 8-bit
sums are exact, so all three must give the same. Writes `benchmarks/results/text-served.json`.
"""

import asyncio
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models

from benchmarks.experiment.mesh import all_healthy, process
from benchmarks.experiment.worker import Cores, running
from benchmarks.figures import quantile, write
from benchmarks.text_engine import CHUNK_TOKENS, KV_MEMORY_MB, MAX_BATCH, Engine, Run
from benchmarks.text_workloads import SHAPE, SMALL, Workload, make_checkpoint, workloads
from headway.client import AsyncHeadway
from headway.requests import service_level
from headway.v1 import text_pb2
from services.text_worker.cpu.compiled import share_torch_threads

console = Console(width=120)
Asked = Callable[[Workload, int], Awaitable[Run]]
DEADLINE_S = 120.0
MOST_LOST = 0.10


def add_tokenizer(folder: Path, vocab: int) -> None:
    """A tokenizer that numbers the tokens: workers do not start without one, and the workload comes as ids."""
    words = {"<unk>": 0} | {f"t{number}": number for number in range(1, vocab)}
    Tokenizer(models.WordLevel(words, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


@asynccontextmanager
async def served(folder: Path, threads: int) -> AsyncIterator[dict[str, str]]:
    """Addresses of a worker, and of a router before it."""
    flags = ("--model", str(folder), "--weights", "int8", "--speculate", "off", "--max-batch", str(MAX_BATCH))
    flags += ("--prefill-chunk", str(CHUNK_TOKENS), "--kv-memory-mb", str(KV_MEMORY_MB), "--max-deadline-s", "600")
    worker = (sys.executable, "-m", "services.text_worker.main", *flags)
    async with running(worker, Cores(tuple(range(threads)), None)) as found:
        address = f"unix:{folder}/router.sock"
        flags = ("--listen", address, "--workers", f"text={found.address}", "--max-deadline-s", "600")
        async with process("services.router.main", *flags, "--metrics-port", "off", "--log-level", "warning"):
            await all_healthy(address, 1)
            yield {"worker": found.address, "router": address}


async def through(client: AsyncHeadway, work: Workload, marked: int) -> Run:
    """All requests at once; `marked` takes the place of each prompt's first token, so that no run has cached it."""
    start_s = time.monotonic()

    async def answer(prompt: tuple[int, ...], count: int) -> tuple[list[float], list[int]]:
        times, tokens = list[float](), list[int]()
        request = text_pb2.GenerateRequest(
            tokens=text_pb2.TokenIds(ids=[marked, *prompt[1:]]),
            max_tokens=count,
            sampling=text_pb2.Sampling(temperature=0.0),
            service_level=service_level(exact="100%"),
        )
        async for message in client.text(request, deadline_s=DEADLINE_S):
            ids = message.chunk.token_ids
            times += [time.monotonic() - start_s] * len(ids)
            tokens += ids
        return times, tokens

    answers = await asyncio.gather(*map(answer, work.prompts, work.new_tokens))
    gaps_s = [gap for times, _ in answers for gap in (b - a for a, b in itertools.pairwise(times))]
    return Run(time.monotonic() - start_s, [times[0] for times, _ in answers], gaps_s, [each for _, each in answers])


async def take_turns(engine: Asked, others: dict[str, Asked], work: Workload, rounds: int) -> dict[str, list[Run]]:
    """Each of `others` in turn, the engine before it on the same prompts, after a round to warm up.

    Raises SystemExit when tokens differ.
    """
    runs: dict[str, list[Run]] = {name: [] for name in ("engine", *others)}
    fresh = itertools.count(2)
    for turn in range(rounds + 1):
        for name, ask in others.items():
            marked = next(fresh)
            truth, seen = await engine(work, marked), await ask(work, marked)
            if truth.tokens != seen.tokens:
                raise SystemExit(f"tokens through {name} differ from the engine's in round {turn}: nothing is reported")
            if turn:
                runs["engine"].append(truth)
                runs[name].append(seen)
    return runs


def row(name: str, runs: list[Run], work: Workload) -> dict[str, Any]:
    tokens = sum(work.new_tokens)
    return {
        "contender": name,
        "tokens_per_s": statistics.median(tokens / run.wall_s for run in runs),
        "first_token_ms_p50": 1000 * quantile([first for run in runs for first in run.first_s], 0.5),
        "token_ms_p50": 1000 * quantile([gap for run in runs for gap in run.gaps_s], 0.5),
    }


async def measure(folder: Path, work: Workload, threads: int, rounds: int) -> dict[str, Any]:
    share_torch_threads()
    torch.set_num_threads(threads)
    async with served(folder, threads) as addresses, Engine(folder, "int8").running() as engine:

        async def alone(work: Workload, marked: int) -> Run:
            prompts = [(marked, *prompt[1:]) for prompt in work.prompts]
            return await engine.run(prompts, work.new_tokens, f"turn {marked}")

        async with AsyncHeadway(addresses["worker"]) as straight, AsyncHeadway(addresses["router"]) as routed:
            others: dict[str, Asked] = {
                "gRPC": partial(through, straight),
                "gRPC and router": partial(through, routed),
            }
            runs = await take_turns(alone, others, work, rounds)
    rows = [row(name, each, work) for name, each in runs.items()]
    return {"workload": work.name, "rounds": rounds, "threads": threads, "rows": rows}


def show(figures: dict[str, Any]) -> None:
    table = Table(title=f"{figures['workload']}, int8, medians of {figures['rounds']}")
    for heading in ("through", "tokens/s", "of the engine's", "first token, ms", "per token, ms"):
        table.add_column(heading)
    most = figures["rows"][0]["tokens_per_s"]
    for one in figures["rows"]:
        cells = (one["tokens_per_s"] / most, one["first_token_ms_p50"], one["token_ms_p50"])
        table.add_row(one["contender"], f"{one['tokens_per_s']:.0f}", *(f"{value:.3g}" for value in cells))
    console.print(table)


def main(
    threads: Annotated[int, typer.Option(help="Threads of the engine.")] = 2,
    rounds: Annotated[int, typer.Option(help="Rounds over the three.")] = 9,
    checkpoint: Annotated[Path | None, typer.Option(help="Where the random checkpoint is kept.")] = None,
    quick: Annotated[bool, typer.Option(help="A small checkpoint, one round; nothing is kept.")] = False,
) -> None:
    """Measures and writes benchmarks/results/text-served.json."""
    with tempfile.TemporaryDirectory(prefix="headway-text-") as spare:
        kept = make_checkpoint(checkpoint or Path(spare) / "checkpoint", small=quick)
        folder = Path(spare) / "served"
        folder.mkdir()
        shutil.copy(kept / "config.json", folder)
        (folder / "model.safetensors").symlink_to(kept / "model.safetensors")
        vocab = (SMALL if quick else SHAPE)["vocab_size"]
        add_tokenizer(folder, vocab)
        work = workloads(vocab, share=0.2 if quick else 1.0)[0]
        figures = asyncio.run(measure(folder, work, threads, 1 if quick else rounds))
    show(figures)
    lost = 1 - figures["rows"][-1]["tokens_per_s"] / figures["rows"][0]["tokens_per_s"]
    console.print(f"through gRPC and the router {lost:.1%} less (at most {MOST_LOST:.0%} wanted)")
    if not quick:
        console.print(f"written to {write('text-served', figures)}")


if __name__ == "__main__":
    typer.run(main)
