"""Questions about a few long documents, so that prompts begin alike, and two text workers behind a router."""

import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.experiment.mesh import all_healthy, process
from benchmarks.experiment.worker import Cores, running
from benchmarks.prompts import documents
from headway.client import AsyncHeadway
from headway.local_redis import LocalRedis
from headway.requests import service_level, text_request
from headway.v1 import text_pb2
from services.text_worker.config import default_model
from services.text_worker.model.families import load_architecture
from services.text_worker.tokenizer import TextTokenizer, load_tokenizer

DOCUMENTS, DOCUMENT_TOKENS, NEW_TOKENS = 16, 384, 24
WORKERS = 2
KV_MEMORY_MB = 12
"""Room for two thirds of the documents or so beside what runs: no worker can keep them all, two can."""
DEADLINE_S = 25.0


@dataclass(frozen=True, slots=True)
class Question:
    """One request."""

    document: int
    prompt: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of it. Times in s."""

    question: Question
    began_s: float
    first_token_s: float
    """From the call."""
    ended_s: float
    tokens: tuple[int, ...]
    cached_tokens: int
    worker: str


def excerpts(tokenizer: TextTokenizer) -> list[str]:
    """The beginnings of different files, all as long in tokens."""
    found = []
    for text in documents():
        ids = tokenizer.encode(text, special=False)[:DOCUMENT_TOKENS]
        if len(ids) == DOCUMENT_TOKENS:
            found.append(tokenizer.decode(ids))
    if len(found) < DOCUMENTS:
        raise RuntimeError(f"{len(found)} documents are long enough, of {DOCUMENTS}")
    return random.Random(0).sample(found, DOCUMENTS)


def questions(texts: Sequence[str], count: int, seed: int) -> list[Question]:
    """About documents drawn evenly; the same seed asks the same. No two prompts are the same."""
    draw, found = random.Random(seed), []
    for number in range(count):
        document = draw.randrange(len(texts))
        found.append(Question(document, f"{texts[document]}\n\n# Question {seed}.{number}: what is this about?\n"))
    return found


class Asking:
    """Asks questions so that every answer is as long, and the likeliest: the same whoever gives it."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = load_tokenizer(folder, load_architecture(folder))

    def request(self, question: Question) -> text_pb2.GenerateRequest:
        level = service_level(exact="100%")
        # The likeliest token by top_k, not by temperature 0: such a text would be kept by the router, once answered.
        request = text_request(question.prompt, max_tokens=NEW_TOKENS, top_k=1, level=level)
        ends = [text_pb2.LogitBias(token_id=each, bias=-100) for each in self.tokenizer.eos_ids]
        request.sampling.logit_bias.extend(ends)
        return request

    async def ask(self, client: AsyncHeadway, question: Question) -> Reply:
        """Raises the HeadwayError that ended it."""
        began_s, first_s, tokens, served = time.perf_counter(), None, list[int](), None
        async for message in client.text(self.request(question), deadline_s=DEADLINE_S):
            if message.HasField("chunk"):
                first_s = first_s or time.perf_counter()
                tokens.extend(message.chunk.token_ids)
            elif message.HasField("summary"):
                served = message.summary.served
        if first_s is None or served is None:
            raise RuntimeError("an answer without tokens or without an end")
        ended_s = time.perf_counter()
        return Reply(
            question, began_s, first_s - began_s, ended_s, tuple(tokens), served.cached_tokens, served.worker_id
        )

    async def closed_loop(self, client: AsyncHeadway, asked: Sequence[Question], at_once: int) -> list[Reply]:
        """Asks all of them in order, so many at once."""
        left: Iterator[Question] = iter(asked)
        found: list[Reply] = []

        async def one_after_the_other() -> None:
            for question in left:
                reply = await self.ask(client, question)
                found.append(reply)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_once):
                tasks.create_task(one_after_the_other())
        return found


@asynccontextmanager
async def two_workers(placement: str, cores: Sequence[int], calibrations: Path) -> AsyncIterator[AsyncHeadway]:
    """A client of a router with this placement, before two fresh text workers with a thread each."""
    with tempfile.TemporaryDirectory(prefix="headway-prefix-") as folder, LocalRedis.start() as redis:
        async with AsyncExitStack() as stack:
            cache, router = f"unix:{folder}/cache.sock", f"unix:{folder}/router.sock"
            quiet = ("--metrics-port", "off", "--log-level", "warning")
            await stack.enter_async_context(
                process("services.prefix_cache.main", "--listen", cache, "--redis", redis.url, *quiet)
            )
            workers = []
            for number in range(WORKERS):
                core = cores[number % len(cores)]
                command = (*_command(), "--prefix-cache", cache, "--device-id", f"device-{number}")
                started = running((*command, "--cache-dir", str(calibrations)), Cores((core,), None))
                workers.append(await stack.enter_async_context(started))
            named = ",".join(f"text={worker.address}" for worker in workers)
            await stack.enter_async_context(
                process(
                    "services.router.main", "--listen", router, "--workers", named, "--prefix-cache", cache,
                    "--placement", placement, *quiet,
                )
            )  # fmt: skip
            await all_healthy(router, WORKERS)
            yield await stack.enter_async_context(AsyncHeadway(router))


def _command() -> tuple[str, ...]:
    return (
        sys.executable, "-m", "services.text_worker.main", "--model", str(default_model()), "--batch-invariant",
        "--speculate", "off", "--kv-memory-mb", str(KV_MEMORY_MB),
    )  # fmt: skip


def shares(replies: Sequence[Reply]) -> list[float]:
    """Of the requests, by worker."""
    counts = Counter(reply.worker for reply in replies)
    return sorted((count / len(replies) for count in counts.values()), reverse=True)
