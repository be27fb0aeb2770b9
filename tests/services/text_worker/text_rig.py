"""A text worker over loopback and a caller that reads its answers, for the tests beside it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from headway.errors import RemoteError, from_rpc_error
from headway.server import StartError, serve
from headway.telemetry import Span
from headway.tracing import Metadata
from headway.v1 import common_pb2, text_pb2, text_pb2_grpc
from services.text_worker.config import TextWorkerConfig
from services.text_worker.main import build

MODEL = Path(__file__).parents[3] / "models" / "text"
GREEDY = text_pb2.Sampling(temperature=0)
ENDLESS = text_pb2.Chat(messages=[text_pb2.ChatMessage(role="user", content="Explain exceptions in Python.")])
"""Answered greedily, the shipped model goes on until its context is full."""
LONG_S = 60.0


@asynccontextmanager
async def served(cache_dir: Path, **options: Any) -> AsyncIterator[grpc.aio.Channel]:
    """A worker until the block ends; SIGTERM stops it as in production."""
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    settings = {"listen": "127.0.0.1:0", "metrics_port": None, "threads": 1, "drain_s": 5.0, "max_deadline_s": 120}
    settings["default_target_s"] = 120  # a slow host keeps it too: what a test means by a budget is a call's deadline
    config = TextWorkerConfig(**({"model": MODEL, "cache_dir": cache_dir} | settings | options))
    task = asyncio.create_task(
        serve(config, "text-worker", partial(build, config), span=Span.WORKER_CALL, ready=port.set_result)
    )
    await asyncio.wait([task, port], return_when=asyncio.FIRST_COMPLETED)
    if task.done():  # without its traceback, which would keep the server beyond its event loop
        raise StartError(str(task.exception())) from None
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port.result()}") as channel:
        yield channel
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(task, 30)


@dataclass
class Answer:
    """A streamed answer, read to its end and checked for order."""

    plan: common_pb2.Plan = field(default_factory=common_pb2.Plan)
    summary: text_pb2.GenerateSummary = field(default_factory=text_pb2.GenerateSummary)
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    offsets: list[int] = field(default_factory=list)
    chunk_sizes: list[int] = field(default_factory=list)

    def check_offset(self) -> None:
        """Chunks follow each other without a gap. A server behind the worker may tell no ids, then texts count."""
        if self.token_ids:
            assert self.offsets[-1] == self.offsets[0] + len(self.token_ids)
        else:
            assert self.offsets == sorted(self.offsets)

    @property
    def reason(self) -> str:
        return text_pb2.FinishReason.Name(self.summary.finish_reason).removeprefix("FINISH_REASON_")


async def ask(
    channel: grpc.aio.Channel, timeout_s: float = LONG_S, *, metadata: Metadata = (), **request: Any
) -> Answer:
    """Answers ENDLESS greedily unless told otherwise."""
    if not {"text", "chat", "tokens"} & request.keys():
        request["chat"] = ENDLESS
    request.setdefault("sampling", GREEDY)
    answer, parts = Answer(), []
    stub = text_pb2_grpc.TextGenerationStub(channel)
    async for message in stub.Generate(text_pb2.GenerateRequest(**request), timeout=timeout_s, metadata=metadata):
        parts.append(message.WhichOneof("part"))
        if parts[-1] == "chunk":
            answer.offsets.append(message.chunk.offset)
            answer.check_offset()
            answer.chunk_sizes.append(len(message.chunk.token_ids))
            answer.token_ids.extend(message.chunk.token_ids)
            answer.text += message.chunk.text
        elif parts[-1] == "plan":
            answer.plan = message.plan
        else:
            answer.summary = message.summary
    assert parts[0] == "plan"
    assert parts[-1] == "summary"
    assert set(parts[1:-1]) <= {"chunk"}
    return answer


async def refusal(channel: grpc.aio.Channel, timeout_s: float = LONG_S, **request: Any) -> RemoteError:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await ask(channel, timeout_s, **request)
    return from_rpc_error(failure.value)
