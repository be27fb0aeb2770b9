"""The splat worker: `headway-splat-worker --listen HOST:PORT --scenes DIR`."""

import asyncio
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from functools import partial

import grpc
import numba

from headway.calibration import cache_folder, calibrated
from headway.config import load
from headway.device import DeviceClient
from headway.engine_loop import EngineLoop
from headway.server import Served, Service, StartError, run
from headway.telemetry import Span
from headway.v1 import common_pb2, splat_pb2_grpc, worker_pb2
from headway.worker import Identity, LoadedAsset, LoopObserver, WorkerRuntime, registrations, worker_policy
from services.splat_worker import costs
from services.splat_worker.config import SplatWorkerConfig
from services.splat_worker.encode import Encoding
from services.splat_worker.engine import SplatEngine
from services.splat_worker.frame import Frame
from services.splat_worker.ladder import Bench
from services.splat_worker.library import LibraryError, LoadedScene, load_library
from services.splat_worker.rasterizer import Rasterizer, max_threads
from services.splat_worker.scene import SceneLimits
from services.splat_worker.scheduler import SplatScheduler
from services.splat_worker.servicer import SplatServicer

ENGINE, DEVICE, PRECISION = "numba-cpu", "cpu", "float32"
REPORTED_PIXELS = 512 * 512
"""Size of the frame whose costs are reported to routers, as a PNG."""
SWITCH_INTERVAL_S = 0.0005
"""How long the engine's thread may keep the interpreter from the event loop (DESIGN, decision 12)."""
OVERHEAD_MS = 1.0
"""From the frame's last byte to the answer's first: waking the event loop and building the message."""


async def build(config: SplatWorkerConfig, service: Service) -> Served:
    """Loads, ranks and calibrates the scenes, then starts the engine. Raises StartError that names the setting."""
    threads = min(config.threads or os.cpu_count() or 1, max_threads())
    device = DeviceClient(config.device_socket)
    service.closing.callback(device.close)
    rasterizer = Rasterizer(threads)
    scenes = await asyncio.to_thread(_load, config, Bench(rasterizer, device))
    scheduler = await asyncio.to_thread(_scheduler, config, scenes, rasterizer, device)
    loop: EngineLoop[Frame] = EngineLoop(
        scheduler,
        SplatEngine(rasterizer, scheduler, service.clock),
        clock=service.clock,
        device=device,
        observer=LoopObserver(service, "splat", 1),
        name="splat",
        pulse=costs.pulse(scenes[0], rasterizer, scheduler.costs[scenes[0].hash]),
        policy=worker_policy(config, [scene.ranked.ladder for scene in scenes]),
    )
    loop.start()
    service.closing.push_async_callback(loop.stop)
    identity = _identity(config, scenes, threads)
    runtime = WorkerRuntime(service, config, identity, loop, partial(_report, scheduler, loop, scenes))
    servicer = SplatServicer(runtime, scenes, scheduler)

    def add(server: grpc.aio.Server) -> None:
        splat_pb2_grpc.add_SplatRenderingServicer_to_server(servicer, server)

    return registrations(runtime, "headway.v1.SplatRendering", add)


def main() -> None:
    """Serves until SIGTERM."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    config = load(SplatWorkerConfig, sys.argv[1:], prog="headway-splat-worker")
    run(config, "splat-worker", partial(build, config), span=Span.WORKER_CALL)


def _load(config: SplatWorkerConfig, bench: Bench) -> tuple[LoadedScene, ...]:
    limits = SceneLimits(config.max_gaussians, config.max_file_mib << 20)
    try:
        return load_library(config.scenes, limits, config.max_scenes, bench, cache_folder(config.cache_dir))
    except LibraryError as error:
        raise StartError(f"scenes {config.scenes}: {error}") from error


def _scheduler(
    config: SplatWorkerConfig, scenes: Sequence[LoadedScene], rasterizer: Rasterizer, device: DeviceClient
) -> SplatScheduler:
    folder = cache_folder(config.cache_dir)
    found = {}
    for scene in scenes:
        labels = ",".join(rung.label for rung in scene.ranked.ladder.rungs)
        host = (ENGINE, numba.__version__, str(rasterizer.threads))
        key = ("splat 2", *host, scene.hash, str(scene.ranked.home), labels)
        curves = calibrated(
            folder,
            key=key,
            measure=partial(costs.measure, scene, rasterizer, device),
            probe=partial(costs.probe, scene, rasterizer, device),
        )
        found[scene.hash] = costs.scene_costs(curves)
    return SplatScheduler(
        costs=found,
        rung_quantile=config.rung_quantile,
        admission_quantile=config.admission_quantile,
        overhead_ms=OVERHEAD_MS,
    )


def _report(
    scheduler: SplatScheduler, loop: EngineLoop[Frame], scenes: Sequence[LoadedScene], state: worker_pb2.WorkerState
) -> None:
    """What a frame costs now at each rung of each scene, in place of a step's cost, which frames do not have; and what
    is kept free for paths."""
    del state.step_costs[:]
    setting = loop.snapshot().setting
    scale = setting.scale
    for due_s, ms in scheduler.ahead.scaled(scale.mean_ms):
        due_in_ms = (due_s - setting.now_s) * 1000
        state.loads.add(due_in_ms=due_in_ms, items=1, setup_mean_ms=ms, priority=common_pb2.PRIORITY_NORMAL)
    for scene in scenes:
        for rung in scene.ranked.ladder.rungs:
            calibrated_cost = scheduler.costs[scene.hash].frame(rung.label, REPORTED_PIXELS, Encoding.PNG)
            cost = calibrated_cost.scaled(scale)
            state.step_costs.add(
                asset_hash=scene.hash, rung=rung.label, batch=1, mean_ms=cost.mean_ms, var_ms2=cost.var_ms2
            )


def _identity(config: SplatWorkerConfig, scenes: Sequence[LoadedScene], threads: int) -> Identity:
    return Identity(
        worker_id=f"splat-{secrets.token_hex(4)}",
        kind=common_pb2.KIND_SPLAT,
        engine=ENGINE,
        device=DEVICE,
        device_id=config.device_id or f"cpu:{socket.gethostname()}",
        precision=PRECISION,
        threads=threads,
        assets=tuple(LoadedAsset(scene.name, scene.hash, scene.ranked.ladder) for scene in scenes),
    )


if __name__ == "__main__":
    main()
