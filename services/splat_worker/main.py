"""The splat worker: `headway-splat-worker --listen HOST:PORT --scenes DIR`."""

import asyncio
import os
import secrets
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import grpc
import numpy as np

from headway.calibration import cache_folder
from headway.config import load
from headway.device import DeviceClient
from headway.engine import Pulse
from headway.engine_loop import EngineLoop
from headway.planning import Setting
from headway.quality import Ladder
from headway.server import Served, Service, StartError, run
from headway.telemetry import Span
from headway.v1 import common_pb2, splat_pb2_grpc, worker_pb2
from headway.worker import Identity, LoopObserver, WorkerRuntime, registrations, worker_policy
from services.splat_worker import costs
from services.splat_worker.config import SplatWorkerConfig
from services.splat_worker.encode import Encoding
from services.splat_worker.engine import SplatEngine
from services.splat_worker.frame import Frame
from services.splat_worker.hardware import renderers
from services.splat_worker.ladder import RankedScene
from services.splat_worker.library import Library, LibraryError, LoadedScene
from services.splat_worker.loading import Loader
from services.splat_worker.rasterizer import max_threads
from services.splat_worker.renderer import Renderer
from services.splat_worker.scene import SceneLimits
from services.splat_worker.scenes import Scenes
from services.splat_worker.scheduler import SplatScheduler
from services.splat_worker.servicer import SplatServicer

PRECISION = "float32"
REPORTED_PIXELS = 512 * 512
"""Size of the frame whose costs are reported to routers, as a PNG."""
SWITCH_INTERVAL_S = 0.0005
"""How long the engine's thread may keep the interpreter from the event loop (DESIGN, decision 12)."""
OVERHEAD_MS = 1.0
"""From the frame's last byte to the answer's first: waking the event loop and building the message."""


async def build(config: SplatWorkerConfig, service: Service) -> Served:
    """Loads, ranks and calibrates the scenes, then starts the engine. Raises StartError that names the setting."""
    threads = min(config.threads or os.cpu_count() or 1, max_threads())
    device = _device(config, service)
    make = await asyncio.to_thread(renderers, config.device, threads)
    renderer = make()
    service.closing.callback(renderer.close)
    scenes = _scenes(config, service, make, device)
    try:
        await scenes.start()
    except LibraryError as error:
        raise StartError(f"scenes {config.scenes}: {error}") from error
    scheduler = _scheduler(config, scenes)
    loop: EngineLoop[Frame] = EngineLoop(
        scheduler,
        SplatEngine(renderer, scheduler, service.clock),
        clock=service.clock,
        device=device,
        observer=LoopObserver(service, "splat", max(renderer.gang_sizes, default=1)),
        name="splat",
        pulse=_pulse(scenes, renderer),
        policy=worker_policy(config, [entry.facts.ladder for entry in scenes.entries]),
    )
    loop.start()
    service.closing.push_async_callback(loop.stop)
    runtime = WorkerRuntime(
        service, config, _identity(config, scenes, renderer), loop, partial(_report, scheduler, scenes)
    )
    scenes.changed = partial(_publish, scenes, runtime)
    tasks = await service.closing.enter_async_context(asyncio.TaskGroup())
    service.closing.callback(tasks.create_task(scenes.follow_folder(config.scene_poll_s)).cancel)
    servicer = SplatServicer(runtime, scenes, scheduler)

    def add(server: grpc.aio.Server) -> None:
        splat_pb2_grpc.add_SplatRenderingServicer_to_server(servicer, server)

    return registrations(runtime, "headway.v1.SplatRendering", add)


def main() -> None:
    """Serves until SIGTERM."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    config = load(SplatWorkerConfig, sys.argv[1:], prog="headway-splat-worker")
    run(config, "splat-worker", partial(build, config), span=Span.WORKER_CALL)


def _device(config: SplatWorkerConfig, service: Service) -> DeviceClient:
    device = DeviceClient(config.device_socket)
    service.closing.callback(device.close)
    return device


def _scenes(
    config: SplatWorkerConfig, service: Service, make_renderer: Callable[[], Renderer], device: DeviceClient
) -> Scenes:
    limits, memory_bytes = SceneLimits(config.max_gaussians, config.max_file_mib << 20), config.scene_memory_mb * 10**6
    # A link of its own to the arbiter: on the engine's, a load that waits would hold the engine up. Where there is no
    # arbiter, the engine's link is the lock that keeps frames and loads from being measured on top of each other.
    loads_device = device if config.device_socket is None else _device(config, service)
    loader = Loader(config.scenes, limits, make_renderer, loads_device, cache_folder(config.cache_dir))
    scenes = Scenes(
        config.scenes, Library(memory_bytes), loader, service.clock, most=config.max_scenes, most_bytes=memory_bytes
    )
    service.closing.push_async_callback(scenes.close)
    return scenes


def _scheduler(config: SplatWorkerConfig, scenes: Scenes) -> SplatScheduler:
    return SplatScheduler(
        costs=scenes.costs,
        rung_quantile=config.rung_quantile,
        admission_quantile=config.admission_quantile,
        failover_share=config.failover_share,
        overhead_ms=OVERHEAD_MS,
    )


def _pulse(scenes: Scenes, renderer: Renderer) -> Pulse:
    """Of the first scene's lowest level, copied: the scene itself must not be kept in memory by it."""
    scene = next(entry.loaded for entry in scenes.entries if entry.loaded is not None)
    lowest = scene.ranked.ladder.rungs[-1]
    level = scene.ranked.at(lowest)
    copied = level.permuted(np.arange(level.count))
    whole = replace(lowest, gaussian_share=1.0)
    ranked = RankedScene(copied, Ladder((whole,)), scene.ranked.home)
    return costs.pulse(LoadedScene(scene.name, ranked, renderer.place(copied)), renderer, scenes.costs[scene.hash])


def _publish(scenes: Scenes, runtime: WorkerRuntime) -> None:
    """Tells those who watch the worker when other scenes can be asked for."""
    assets = tuple(entry.facts.asset for entry in scenes.entries)
    if assets != runtime.identity.assets:
        runtime.replace_assets(assets)


def _report(scheduler: SplatScheduler, scenes: Scenes, state: worker_pb2.WorkerState, setting: Setting) -> None:
    """What a frame costs now at each rung of each scene, in place of a step's cost, which frames do not have; and what
    is kept free for paths."""
    del state.step_costs[:]
    scale = setting.scale
    for due_s, ms in scheduler.ahead.scaled(scale.mean_ms):
        due_in_ms = (due_s - setting.now_s) * 1000
        state.loads.add(due_in_ms=due_in_ms, items=1, setup_mean_ms=ms, priority=common_pb2.PRIORITY_NORMAL)
    for entry in scenes.entries:
        for rung in entry.facts.ladder.rungs:
            calibrated_cost = scheduler.costs[entry.facts.hash].frame(rung.label, REPORTED_PIXELS, Encoding.PNG)
            cost = calibrated_cost.scaled(scale)
            state.step_costs.add(
                asset_hash=entry.facts.hash, rung=rung.label, batch=1, mean_ms=cost.mean_ms, var_ms2=cost.var_ms2
            )


def _identity(config: SplatWorkerConfig, scenes: Scenes, renderer: Renderer) -> Identity:
    return Identity(
        worker_id=f"splat-{secrets.token_hex(4)}",
        kind=common_pb2.KIND_SPLAT,
        engine=renderer.engine,
        device=renderer.device,
        device_id=config.device_id or f"{renderer.device}:{socket.gethostname()}",
        precision=PRECISION,
        threads=renderer.threads,
        assets=tuple(entry.facts.asset for entry in scenes.entries),
    )


if __name__ == "__main__":
    main()
