"""The splat worker as a real server over loopback with the scene that ships."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import grpc

from headway.server import serve
from headway.telemetry import Span
from headway.v1 import worker_pb2, worker_pb2_grpc
from services.splat_worker.card import read_cards
from services.splat_worker.config import SplatWorkerConfig
from services.splat_worker.main import build

SCENES = Path(__file__).parents[3] / "models" / "scenes"
CARD = read_cards(SCENES)["still-life"]
TIMEOUT_S = 20.0
RUNG_S = 0.4


@asynccontextmanager
async def worker(**settings) -> AsyncIterator[grpc.aio.Channel]:
    port = asyncio.get_running_loop().create_future()
    defaults = {"listen": "127.0.0.1:0", "metrics_port": None, "threads": 1, "drain_s": 5}
    config = SplatWorkerConfig(**(defaults | settings))
    task = asyncio.create_task(
        serve(config, "splat-worker", partial(build, config), span=Span.WORKER_CALL, ready=port.set_result)
    )
    await asyncio.wait([task, port], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    try:
        target = config.listen if config.listen.startswith("unix:") else f"127.0.0.1:{port.result()}"
        async with grpc.aio.insecure_channel(target) as channel:
            yield channel
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(task, 20)


async def state(channel) -> worker_pb2.WorkerState:
    call = worker_pb2_grpc.WorkerStub(channel).Watch(worker_pb2.WatchWorkerRequest(), timeout=TIMEOUT_S)
    first = await call.read()
    call.cancel()
    return first


async def rung_costs_s(channel) -> dict[str, float]:
    """What a PNG of 512 x 512 is said to take at each rung, best rung first."""
    return {cost.rung: cost.mean_ms / 1000 for cost in (await state(channel)).step_costs}
