"""The image worker: `headway-dit-worker --listen HOST:PORT --model DIR`."""

import asyncio
import secrets
import socket
import sys
from functools import partial

import grpc
import torch

from headway.config import load
from headway.device import DeviceClient
from headway.engine_loop import EngineLoop
from headway.quality import Ladder, Rung
from headway.server import Served, Service, StartError, run
from headway.telemetry import Span
from headway.v1 import common_pb2, image_pb2_grpc
from headway.worker import Identity, LoadedAsset, LoopObserver, WorkerRuntime, registrations, worker_policy
from services.dit_worker import costs
from services.dit_worker.config import DitWorkerConfig
from services.dit_worker.engine import DitEngine
from services.dit_worker.hardware import Hardware, prepare
from services.dit_worker.model import checkpoint
from services.dit_worker.request import RequestLimits
from services.dit_worker.sample_group import SampleGroup
from services.dit_worker.scheduler import DitScheduler
from services.dit_worker.servicer import ImageServicer

SWITCH_INTERVAL_S = 0.0005
"""How long the engine's thread may keep the interpreter from the event loop (DESIGN, decision 12)."""
OVERHEAD_MS = 1.0
"""From the last step's end to the answer's first byte: waking the event loop and building the messages."""


async def build(config: DitWorkerConfig, service: Service) -> Served:
    """Loads and calibrates, then starts the engine. Raises StartError that names the setting."""
    model = await asyncio.to_thread(_load, config)
    device = DeviceClient(config.device_socket)
    service.closing.callback(device.close)
    hardware = await asyncio.to_thread(prepare, config, model, device)
    torch.set_num_threads(hardware.threads)
    scheduler = _scheduler(config, hardware)
    loop: EngineLoop[SampleGroup] = EngineLoop(
        scheduler,
        DitEngine(hardware.flow, hardware.stepper, hardware.decoder, scheduler, service.clock),
        clock=service.clock,
        device=device,
        observer=LoopObserver(service, "image", hardware.max_batch),
        name="image",
        pulse=costs.pulse(hardware.flow, hardware.stepper, scheduler.costs),
        policy=worker_policy(config, [_ladder(model)]),
    )
    loop.start()
    service.closing.push_async_callback(loop.stop)
    runtime = WorkerRuntime(service, config, _identity(config, model, hardware), loop)
    shape = model.decoder.image_shape(model.config.topology.image_shape)
    servicer = ImageServicer(runtime, RequestLimits(model.config, shape, config.max_images))

    def add(server: grpc.aio.Server) -> None:
        image_pb2_grpc.add_ImageGenerationServicer_to_server(servicer, server)

    return registrations(runtime, "headway.v1.ImageGeneration", add)


def main() -> None:
    """Serves until SIGTERM."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    torch.set_num_interop_threads(1)
    config = load(DitWorkerConfig, sys.argv[1:], prog="headway-dit-worker")
    run(config, "dit-worker", partial(build, config), span=Span.WORKER_CALL)


def _load(config: DitWorkerConfig) -> checkpoint.Checkpoint:
    try:
        return checkpoint.load(config.model)
    except checkpoint.CheckpointError as error:
        raise StartError(f"model {config.model}: {error}") from error


def _scheduler(config: DitWorkerConfig, hardware: Hardware) -> DitScheduler:
    return DitScheduler(
        costs=hardware.costs,
        max_batch=hardware.max_batch,
        rung_quantile=config.rung_quantile,
        admission_quantile=config.admission_quantile,
        failover_share=config.failover_share,
        overhead_ms=OVERHEAD_MS,
    )


def _ladder(model: checkpoint.Checkpoint) -> Ladder:
    return Ladder(tuple(Rung(str(rung.steps), rung.quality, nfe=rung.steps, dfd=rung.dfd) for rung in model.rungs))


def _identity(config: DitWorkerConfig, model: checkpoint.Checkpoint, hardware: Hardware) -> Identity:
    return Identity(
        worker_id=f"image-{secrets.token_hex(4)}",
        kind=common_pb2.KIND_IMAGE,
        engine=hardware.engine,
        device=hardware.device,
        device_id=config.device_id or f"{hardware.device}:{socket.gethostname()}",
        precision=hardware.precision,
        threads=hardware.threads,
        assets=(LoadedAsset(model.config.name, model.config.fingerprint, _ladder(model)),),
    )


if __name__ == "__main__":
    main()
