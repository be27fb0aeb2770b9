"""Our text engine as the benchmark drives it: the worker's own loop, scheduler and engine, without gRPC.

`python -m benchmarks.text_engine int8` reads a `Task` as JSON from standard input and prints `Measured` as JSON, as
every contender does.
"""

import asyncio
import itertools
import json
import resource
import sys
import time
from collections.abc import AsyncIterator, Iterator
from collections.abc import Sequence as Several
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models

from benchmarks.text_workloads import SHAPE
from headway.cost import Cost, StepCurve
from headway.deadline import Budget
from headway.engine import Batch
from headway.engine_loop import EngineLoop
from headway.planning import Setting
from headway.quality import read_wish
from headway.ticket import Finished, Ticket
from headway.v1 import common_pb2
from services.text_worker.backend import Span
from services.text_worker.costs import TextCosts, costs_of, with_taking_in
from services.text_worker.costs import measure as measure_costs
from services.text_worker.cpu.compiled import share_torch_threads
from services.text_worker.cpu.linear import WeightKind
from services.text_worker.cpu.model import CpuModel
from services.text_worker.drawing import draw
from services.text_worker.engine import TextEngine
from services.text_worker.kv.chain import Chain
from services.text_worker.kv.pages import Pages, blocks_for
from services.text_worker.kv.store import KvStore, blocks_of
from services.text_worker.model.families import load_architecture
from services.text_worker.sampling import Sampler, Sampling
from services.text_worker.scheduler import TextBatch, TextScheduler
from services.text_worker.sequence import LADDER, Delta, Sequence, goals_of
from services.text_worker.speculation import Mode
from services.text_worker.tokenizer import Detokenizer, StopStrings, TextTokenizer

_NAMES = {f"t{number}": number for number in range(SHAPE["vocab_size"])}
WORDS = TextTokenizer(Tokenizer(models.WordLevel(_NAMES, unk_token="t0")), frozenset(), None, 1)
"""Every token is a word, so that a step's bookkeeping has its text in it."""
KV_MEMORY_MB = 1024
MAX_BATCH, CHUNK_TOKENS = 32, 512
FOREVER_S = 1e6


@dataclass(frozen=True)
class Run:
    """One run of a workload. Times in seconds from the arrival of all requests."""

    wall_s: float
    first_s: list[float]
    gaps_s: list[float]
    tokens: list[list[int]]


@dataclass
class Measured:
    """What a contender says of itself."""

    engine: str
    precision: str
    peak_mb: float = 0.0
    runs: dict[str, list[Run]] = field(default_factory=dict)
    notes: dict[str, float] = field(default_factory=dict)


class TimedModel:
    """A model that remembers how many forward passes there were and how long they took."""

    def __init__(self, model: CpuModel) -> None:
        self._model, self.spent_s, self.passes = model, 0.0, 0
        self.vocab, self.context, self.element = model.architecture.vocab, model.context, model.element

    def forward(self, spans: Several[Span], pages: Pages) -> torch.Tensor:
        start_s = time.perf_counter()
        logits = self._model.forward(spans, pages)
        self.spent_s += time.perf_counter() - start_s
        self.passes += 1
        return logits


class _Alone:
    """A device that nobody else wants, and an observer that notes what steps were to take and took."""

    wait_s, granted = 0.0, True

    def __init__(self) -> None:
        self.steps: list[tuple[bool, float, float]] = []
        """Whether there were drafts in it; predicted ms; actual ms."""

    @contextmanager
    def lease(self, *, due_s: float, label: str, keep: bool = False) -> Iterator["_Alone"]:
        yield self

    def rest(self) -> None: ...

    def hurry(self, due_s: float) -> None: ...

    def declare(self, demand: Several[tuple[float, float]], *, step_end_s: float | None = None) -> None: ...

    def others(self) -> tuple[tuple[float, float], ...]:
        return ()

    @property
    def busy_until_s(self) -> None: ...

    def stepped(self, batch: Batch[Any], actual_ms: float, queued: int, lease: Any) -> None:
        assert isinstance(batch, TextBatch)
        drafts = any(part.drafts for part in batch.parts)
        self.steps.append((drafts, batch.predicted.mean_ms, actual_ms))

    def finished(self, *_: Any) -> None: ...


class Engine:
    """The worker's engine loop over one checkpoint. Every request is planned in full and nothing is refused."""

    def __init__(
        self,
        folder: Path,
        kind: WeightKind,
        *,
        invariant: bool = False,
        speculate: Mode = "off",
        measured: bool = False,
    ) -> None:
        """Steps' costs are measured only where something is chosen by them: to speculate, or with `measured`."""
        architecture = load_architecture(folder)
        self.model = TimedModel(CpuModel.load(folder, architecture, kind, invariant=invariant))
        self.context = architecture.context
        element = self.model.element
        blocks = blocks_for(architecture, KV_MEMORY_MB, architecture.context, element.bytes_each)
        self.store = KvStore(Pages(architecture, blocks, element))
        flat, alone = StepCurve(((1, Cost(1e-3)),)), _Alone()
        costs = TextCosts(decode=flat, prefill=flat, chunk_tokens=CHUNK_TOKENS)
        if speculate != "off" or measured:
            sizes = {"max_batch": 1 if speculate == "off" else MAX_BATCH, "chunk_tokens": CHUNK_TOKENS}
            costs = costs_of(measure_costs(self.model, self.store.pages, device=alone, **sizes), CHUNK_TOKENS)  # type: ignore[arg-type]
            costs = with_taking_in(costs, self.store.pages, alone)
        self.speculate, self.costs = speculate, costs
        planning = Setting(now_s=0.0, curve=costs.decode, max_batch=MAX_BATCH)
        scheduler = TextScheduler(costs, self.store.pool, planning, speculate=speculate)
        self.drafted, self.accepted, self.observed = 0, 0, alone
        engine = TextEngine(self.model, self.store, costs, clock=time.monotonic, told=self._told)  # type: ignore[arg-type]
        self.loop = EngineLoop(scheduler, engine, clock=time.monotonic, device=alone, observer=alone, name="bench")

    def _told(self, drafted: int, accepted: int) -> None:
        self.drafted, self.accepted = self.drafted + drafted, self.accepted + accepted

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Engine"]:
        self.loop.start()
        try:
            yield self
        finally:
            await self.loop.stop()

    async def run(self, prompts: Several[Several[int]], new_tokens: Several[int], salt: str) -> Run:
        """All requests at once; those of one `salt` share prefixes."""
        start_s = time.monotonic()
        answers = await asyncio.gather(
            *(
                self._answer(tuple(prompt), count, salt, start_s)
                for prompt, count in zip(prompts, new_tokens, strict=True)
            )
        )
        wall_s = time.monotonic() - start_s
        gaps_s = [gap for times, _ in answers for gap in (b - a for a, b in itertools.pairwise(times))]
        return Run(wall_s, [times[0] for times, _ in answers], gaps_s, [tokens for _, tokens in answers])

    async def _answer(
        self, prompt: tuple[int, ...], count: int, salt: str, start_s: float
    ) -> tuple[list[float], list[int]]:
        times: list[float] = []
        tokens: list[int] = []
        async with self.loop.submit(new_sequence(prompt, count, salt)) as ticket:
            while True:
                event = await ticket.events.get()
                if isinstance(event, Delta):
                    times += [time.monotonic() - start_s] * len(event.token_ids)
                    tokens += event.token_ids
                elif isinstance(event, Finished):
                    return times, tokens
                else:
                    raise event


def new_sequence(prompt: tuple[int, ...], count: int, salt: str) -> Sequence:
    """A greedy request that nothing refuses."""
    now_s = time.monotonic()
    wish = read_wish(common_pb2.ServiceLevel(exact="100%"), LADDER, common_pb2.KIND_TEXT)
    sequence = Sequence(
        ticket=Ticket(Budget(now_s, now_s + FOREVER_S, 0.0), wish, now_s + FOREVER_S),
        tokens=list(prompt),
        prompt_tokens=len(prompt),
        max_tokens=count,
        resumed_tokens=0,
        goals=goals_of(wish, count),
        sampler=Sampler(Sampling(), 0),
        end_ids=frozenset(),
        detokenizer=Detokenizer(WORDS),
        stops=StopStrings(()),
    )
    sequence.kv.chain = Chain(salt, b"bench")
    return sequence


async def measure(task: dict[str, Any], kind: WeightKind, *, invariant: bool = False) -> Measured:
    """Every workload `repeats` times after one run to warm up; each run under a salt of its own."""
    share_torch_threads()
    torch.set_num_threads(task["threads"])
    engine = Engine(Path(task["checkpoint"]), kind, invariant=invariant)
    found = Measured("headway" + (", batch-invariant" if invariant else ""), kind)
    async with engine.running():
        for workload in task["workloads"]:
            prompts, new = workload["prompts"], workload["new_tokens"]
            name = workload["name"]
            await engine.run(prompts, [2] * len(new), f"{name} warm")
            found.runs[name] = [await engine.run(prompts, new, f"{name} {i}") for i in range(task["repeats"])]
        if task.get("extras"):
            found.notes |= await _extras(engine)
    found.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def _draw_s(vocab: int) -> float:
    """What drawing for a whole batch takes, greedily: neither the pass nor bookkeeping."""
    logits, samplers = torch.randn(MAX_BATCH, vocab), [Sampler(Sampling())] * MAX_BATCH
    taken_s = []
    for _ in range(9):
        start_s = time.perf_counter()
        draw(logits, samplers)
        taken_s.append(time.perf_counter() - start_s)
    return sorted(taken_s)[4]


def _against_recompute(engine: Engine, most_tokens: int) -> dict[str, float]:
    """Eight sequences grown to `most_tokens`: steps over cached keys and values, against whole passes each time.

    Both ask for the last token's logits only. Four lengths are timed and the rest is taken to lie on lines between.
    """
    lengths = [most_tokens * part // 8 for part in (1, 3, 5, 8)]
    each = blocks_of(most_tokens)
    tables = [range(line * each, (line + 1) * each) for line in range(8)]
    cached_ms, whole_ms = list[float](), list[float]()
    for length in lengths:
        steps = [Span(table, length - 1, (5,)) for table in tables]
        wholes = [Span(table, 0, (5,) * length) for table in tables]
        cached_ms.append(min(_forward_ms(engine, steps) for _ in range(5)))
        whole_ms.append(min(_forward_ms(engine, wholes) for _ in range(2)))
    ratio = np.trapezoid(whole_ms, lengths) / np.trapezoid(cached_ms, lengths)
    return {"kv_cache_against_recompute_batch_8": float(ratio), "step_ms_batch_8_longest": cached_ms[-1]}


def _forward_ms(engine: Engine, spans: list[Span]) -> float:
    start_s = time.perf_counter()
    engine.model.forward(spans, engine.store.pages)
    return (time.perf_counter() - start_s) * 1000


async def _extras(engine: Engine) -> dict[str, float]:
    """The share of scheduling and bookkeeping at batch 32, which is all but passes and drawing; first tokens with and
    without a cached beginning; and what the cache saves."""
    prompts = [tuple(range(2 + i, 130 + i)) for i in range(MAX_BATCH)]
    await engine.run(prompts, [2] * MAX_BATCH, "share")
    engine.model.spent_s, engine.model.passes = 0.0, 0
    run = await engine.run(prompts, [64] * MAX_BATCH, "share")
    drawing_s = engine.model.passes * _draw_s(engine.model.vocab)
    outside = 1.0 - (engine.model.spent_s + drawing_s) / run.wall_s
    cold = [await engine.run([tuple(range(2, 418))], [2], f"cold {i}") for i in range(5)]
    warm = [await engine.run([(*range(2, 386), *(400 + i + j for j in range(32)))], [2], "cold 4") for i in range(5)]
    return {
        **_against_recompute(engine, engine.context // 4),
        "bookkeeping_share_at_batch_32": outside,
        "first_token_ms_416_cold": 1000 * sorted(run.first_s[0] for run in cold)[2],
        "first_token_ms_384_of_416_cached": 1000 * sorted(run.first_s[0] for run in warm)[2],
    }


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    print(json.dumps(asdict(asyncio.run(measure(json.load(sys.stdin), kind, invariant=rest == ["invariant"])))))  # type: ignore[arg-type]
