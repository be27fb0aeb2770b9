"""Text workers in one process that share their blocks, each with its metrics at hand."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from text_rig import MODEL, Answer, ask

from headway.auth import OPEN_TENANT
from headway.cost import Cost, StepCurve
from headway.prefix import BLOCK_TOKENS, token_chain
from headway.server import Served, Service, serve
from headway.telemetry import Span
from headway.v1 import text_pb2
from services.text_worker import main
from services.text_worker.config import TextWorkerConfig
from services.text_worker.costs import TextCosts
from services.text_worker.loading import attention_of, calibrate, kv_fingerprint, load_model
from services.text_worker.main import build
from services.text_worker.model.weights import fingerprint

PROMPT = tuple(10 + 7 * i % 400 for i in range(400))
BLOCKS = (len(PROMPT) - 1) // BLOCK_TOKENS
SLOW_PREFILL = StepCurve(((1, Cost(4.0)), (128, Cost(512.0))))
LONG_S = 110.0


@dataclass
class Worker:
    """One that serves."""

    channel: grpc.aio.Channel
    service: Service
    fingerprint: bytes
    """Of what makes its keys and values."""

    def chain(self, tokens: tuple[int, ...]) -> tuple[bytes, ...]:
        """The names of a prompt's blocks, as every such worker has them without a secret for the one tenant."""
        return token_chain(tokens, salt=f"blocks of {OPEN_TENANT}", fingerprint=self.fingerprint)

    async def ask(self, tokens: tuple[int, ...] = PROMPT, **request: Any) -> Answer:
        """A greedy answer."""
        request.setdefault("max_tokens", 8)
        return await ask(self.channel, LONG_S, tokens=text_pb2.TokenIds(ids=tokens), **request)

    def count(self, name: str, result: str) -> int:
        """A counter's value by its `result`."""
        value = self.service.metrics.registry.get_sample_value(f"headway_{name}_total", {"result": result})
        return int(value or 0)

    def blocks(self, result: str) -> int:
        return self.count("kv_shared_blocks", result)

    def restores(self, result: str) -> int:
        return self.count("kv_restores", result)

    @property
    def reachable(self) -> bool:
        return self.service.metrics.registry.get_sample_value("headway_store_reachable", {"store": "kv"}) == 1


@asynccontextmanager
async def worker(cache_dir: Path, **options: Any) -> AsyncIterator[Worker]:
    """In int8, where a restored prompt and a computed one are the same bits; blocks are written when first seen."""
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop, services = asyncio.Event(), list[Service]()
    settings = {"listen": "127.0.0.1:0", "metrics_port": None, "threads": 1, "drain_s": 5.0, "max_deadline_s": 120}
    settings |= {"weights": "int8", "default_target_s": 120, "kv_store_sightings": 1, "speculate": "off"}
    config = TextWorkerConfig(**({"model": MODEL, "cache_dir": cache_dir} | settings | options))

    async def noted(service: Service) -> Served:
        services.append(service)
        return await build(config, service)

    serving = serve(config, "text-worker", noted, span=Span.WORKER_CALL, ready=port.set_result, until=stop.wait)
    task = asyncio.create_task(serving)
    await asyncio.wait([task, port], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port.result()}") as channel:
        cpu, arithmetic = torch.device("cpu"), load_model(config).model
        name = kv_fingerprint(config, fingerprint(MODEL), cpu, 512, attention_of(arithmetic))
        yield Worker(channel, services[0], name)
    stop.set()
    await asyncio.wait_for(task, 30)


def slow_to_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers started from now on take their host for one on which prefill is slow.

    So what they decide does not hang on how quick the test's host and its Redis are today.
    """

    def calibrated(*arguments: Any) -> TextCosts:
        costs = calibrate(*arguments)
        return replace(costs, prefill=SLOW_PREFILL)

    monkeypatch.setattr(main, "calibrate", calibrated)


class Wire:
    """A proxy before a Unix socket, which can be slowed to a stop or cut. A context manager."""

    def __init__(self, target: str, folder: Path) -> None:
        self._target, self._path = target, folder / "wire.sock"
        self.url = f"unix://{self._path}"
        self.flows = asyncio.Event()
        self.flows.set()
        self.left_bytes: int | None = None
        """How much still comes back before the wire is cut; None: all."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Wire":
        self._server = await asyncio.start_unix_server(self._connected, self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_unix_connection(self._target)
        ways = ((reader, there_writer, False), (there_reader, writer, True))
        self._tasks |= {asyncio.create_task(self._pass_on(*way)) for way in ways}

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, back: bool) -> None:
        try:
            while data := await reader.read(1 << 14):
                await self.flows.wait()
                if back and self.left_bytes is not None:
                    self.left_bytes -= len(data)
                    if self.left_bytes < 0:
                        break
                writer.write(data)
                await writer.drain()
        except ConnectionError:  # one side is gone; the other one is closed below
            pass
        finally:
            writer.close()


async def until(reached: Callable[[], bool]) -> None:
    """Waits for what happens behind what is served; the test's own limit is the only one."""
    while not reached():  # noqa: ASYNC110 - counters tell nobody
        await asyncio.sleep(0.01)
