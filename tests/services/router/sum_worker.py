"""Genuine small workers over the real engine loop: their engine adds up a number, one step at a time.

`python sum_worker.py image [STEPS [SETTINGS]]` serves in a process of its own, with settings as JSON, and prints its
port; after STEPS steps it hangs.
"""

import asyncio
import hashlib
import json
import logging
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from headway.config import WorkerConfig
from headway.cost import Cost, Load, StepCurve
from headway.device import Lease
from headway.engine import Batch
from headway.engine_loop import EngineLoop
from headway.errors import BadInput
from headway.planning import Job, Option, Setting
from headway.quality import Ladder, Rung
from headway.server import Served, Service, serve
from headway.telemetry import Span
from headway.ticket import Finished, Ticket
from headway.v1 import common_pb2, image_pb2, image_pb2_grpc, splat_pb2, splat_pb2_grpc, text_pb2, text_pb2_grpc
from headway.worker import Identity, LoadedAsset, LoopObserver, WorkerRuntime, registrations

LADDER = Ladder((Rung("4", 1.0, nfe=4), Rung("2", 0.8, nfe=2), Rung("1", 0.5, nfe=1)))
ASSET_HASH = "5" * 64


@dataclass
class Sum:
    ticket: Ticket
    number: int
    total: int = 0


class SumScheduler:
    def __init__(self, step_ms: float, step_var_ms2: float = 0.0) -> None:
        self.curve, self.max_batch = StepCurve(((1, Cost(step_ms, step_var_ms2)),)), 8

    def setting(self, now_s: float, foreign: Any, scale: Cost) -> Setting:
        return Setting(now_s, self.curve, self.max_batch, scale, foreign)

    def job(self, work: Sum, now_s: float) -> Job:
        ticket, done = work.ticket, work.ticket.steps_executed
        options = [
            Option(rung, Load(ticket.budget.due_s, 1, rung.nfe - done))
            for rung in ticket.wish.allowed
            if rung.nfe is not None and rung.nfe > done
        ]
        return Job(ticket.key, ticket.wish.priority, ticket.budget.due_s, ticket.target_s, tuple(options))

    def next_batch(self, works: Sequence[Sum], now_s: float, scale: Cost) -> Batch[Sum] | None:
        taken = tuple(works[: self.max_batch])
        return Batch("steps", taken, len(taken), self.curve.at(len(taken)))


@dataclass
class SumEngine:
    """Steps while `gate` is open, which closes itself after `steps`; a step hashes `rounds` times, for CPU time."""

    gate: threading.Event = field(default_factory=threading.Event)
    steps: int | None = None
    rounds: int = 1
    released: int = 0

    def run(self, batch: Batch[Sum]) -> list[int]:
        if self.steps is not None:
            self.steps -= 1
            if self.steps < 0:
                self.gate.clear()
        assert self.gate.wait(20)
        hashlib.pbkdf2_hmac("sha256", b"sum", b"worker", self.rounds)
        return [work.total + work.number for work in batch.works]

    def apply(self, batch: Batch[Sum], result: list[int], now_s: float) -> list[tuple[Ticket, Any]]:
        events: list[tuple[Ticket, Any]] = []
        for work, total in zip(batch.works, result, strict=True):
            work.total = total
            work.ticket.steps_executed += 1
            events.append((work.ticket, total))
            if work.ticket.steps_executed >= (work.ticket.rung.nfe or 0):
                events.append((work.ticket, Finished(total)))
        return events

    def release(self, work: Sum) -> None:
        self.released += 1


class Alone:
    def lease(self, *, due_s: float, label: str, keep: bool = False) -> AbstractContextManager[Any]:
        return nullcontext(Lease(wait_s=0.0, granted=True))

    def rest(self) -> None:
        """Nothing is kept."""

    def hurry(self, due_s: float) -> None: ...

    def declare(self, demand: Sequence[tuple[float, float]], *, step_end_s: float | None = None) -> None: ...

    def others(self) -> tuple[tuple[float, float], ...]:
        return ()

    @property
    def busy_until_s(self) -> None: ...


class SumServicer:
    """Streams a sum after every step; images, text and frames differ in their messages alone."""

    def __init__(self, runtime: WorkerRuntime) -> None:
        self.runtime = runtime
        self.asset = runtime.identity.assets[0]
        self.budgets: list[float] = []
        """What each call brought, in seconds: the deadline as this hop sees it."""
        self.metadata: list[dict[str, Any]] = []

    async def sums(self, name: str, number: int, level: Any, context: Any, done: int = 0) -> AsyncIterator[Any]:
        """`done`: steps that another worker took already."""
        self.budgets.append(context.time_remaining())
        self.metadata.append(dict(context.invocation_metadata()))
        budget = self.runtime.budget(context)
        self.runtime.identity.find("model", name)
        if number > 1000:
            raise BadInput("labels", "each must be at most 1000")
        ticket = self.runtime.ticket(budget, level, self.asset.ladder)
        context.set_trailing_metadata((("sum-worker", self.runtime.identity.worker_id),))
        ticket.steps_executed = done
        async for event in self.runtime.events(Sum(ticket, number, number * done)):
            yield self.runtime.served(ticket, self.asset) if isinstance(event, Finished) else event


class SumImages(SumServicer, image_pb2_grpc.ImageGenerationServicer):
    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for part in self.sums(request.model, sum(request.labels), request.service_level, context):
            if isinstance(part, common_pb2.Plan):
                yield image_pb2.GenerateImagesResponse(plan=part)
            elif isinstance(part, common_pb2.Served):
                yield image_pb2.GenerateImagesResponse(summary=image_pb2.ImagesSummary(served=part, seed=request.seed))
            else:
                index = part // max(1, sum(request.labels)) - 1
                image = image_pb2.Image(index=index, data=str(part).encode(), preview=request.previews)
                yield image_pb2.GenerateImagesResponse(batch=image_pb2.ImageBatch(images=[image]))

    async def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        assets = self.runtime.identity.assets
        return image_pb2.ListImageModelsResponse(
            models=[image_pb2.ImageModel(name=asset.name, hash=asset.hash, classes=10) for asset in assets]
        )


class SumText(SumServicer, text_pb2_grpc.TextGenerationServicer):
    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        done, tokens = len(request.resume.token_ids), 0
        async for part in self.sums(request.model, len(request.text), request.service_level, context, done):
            if isinstance(part, common_pb2.Plan):
                yield text_pb2.GenerateResponse(plan=part)
            elif isinstance(part, common_pb2.Served):
                usage = text_pb2.Usage(completion_tokens=tokens)
                seed = request.resume.seed or request.sampling.seed
                yield text_pb2.GenerateResponse(summary=text_pb2.GenerateSummary(served=part, usage=usage, seed=seed))
            else:
                chunk = text_pb2.TokenChunk(token_ids=[part], offset=done + tokens, text=f"{part} ")
                tokens += 1
                yield text_pb2.GenerateResponse(chunk=chunk)

    async def Tokenize(self, request: Any, context: Any) -> Any:  # noqa: N802
        return text_pb2.TokenizeResponse(ids=request.text.encode())


class SumFrames(SumServicer, splat_pb2_grpc.SplatRenderingServicer):
    async def Render(self, request: Any, context: Any) -> Any:  # noqa: N802
        response = splat_pb2.RenderResponse()
        async for part in self.sums(request.scene, request.options.width, request.service_level, context):
            if isinstance(part, common_pb2.Plan):
                response.plan.CopyFrom(part)
            elif isinstance(part, common_pb2.Served):
                response.served.CopyFrom(part)
            else:
                response.frame.data = str(part).encode()
        return response


KINDS: dict[str, Any] = {
    "image": (
        common_pb2.KIND_IMAGE,
        "headway.v1.ImageGeneration",
        SumImages,
        image_pb2_grpc.add_ImageGenerationServicer_to_server,
    ),
    "text": (
        common_pb2.KIND_TEXT,
        "headway.v1.TextGeneration",
        SumText,
        text_pb2_grpc.add_TextGenerationServicer_to_server,
    ),
    "splat": (
        common_pb2.KIND_SPLAT,
        "headway.v1.SplatRendering",
        SumFrames,
        splat_pb2_grpc.add_SplatRenderingServicer_to_server,
    ),
}


@dataclass
class SumWorker:
    """One worker; `build` fills in the parts that tests look at."""

    kind: str = "image"
    name: str = "one"
    step_ms: float = 1.0
    step_var_ms2: float = 0.0
    assets: tuple[str, ...] = ("sums",)
    settings: dict[str, Any] = field(default_factory=dict)
    engine: SumEngine = field(default_factory=SumEngine)
    loop: Any = None
    servicer: Any = None
    address: str = ""
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def build(self, config: WorkerConfig, service: Service) -> Served:
        kind, service_name, servicer, add = KINDS[self.kind]
        scheduler = SumScheduler(self.step_ms, self.step_var_ms2)
        self.loop = EngineLoop(
            scheduler,
            self.engine,
            clock=service.clock,
            device=Alone(),
            observer=LoopObserver(service, self.kind, scheduler.max_batch),
            name=self.kind,
        )
        self.loop.start()

        async def end() -> None:
            self.engine.gate.set()
            await self.loop.stop()

        service.closing.push_async_callback(end)
        assets = tuple(LoadedAsset(name, ASSET_HASH, LADDER) for name in self.assets)
        identity = Identity(f"{self.kind}-{self.name}", kind, "sum", "cpu", "cpu:test", "int", 1, assets)
        self.servicer = servicer(WorkerRuntime(service, config, identity, self.loop))
        return registrations(self.servicer.runtime, service_name, partial(add, self.servicer))

    async def serve(self, ready: Any, listen: str = "127.0.0.1:0") -> None:
        config = WorkerConfig(listen=listen, metrics_port=None, drain_s=0.0, return_reserve_ms=0.0, **self.settings)
        await serve(
            config, self.kind, partial(self.build, config), span=Span.WORKER_CALL, ready=ready, until=self.stop.wait
        )


async def main(kind: str, steps: str = "", settings: str = "{}") -> None:
    logging.basicConfig(level="INFO")
    engine = SumEngine(steps=int(steps) if steps else None)
    worker = SumWorker(kind, name="process", engine=engine, settings=json.loads(settings))
    worker.engine.gate.set()
    await worker.serve(lambda port: print(port, flush=True))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
