"""Starts the text worker: `headway-text-worker`, or `python -m services.text_worker.main`."""

import asyncio
import logging
import os
import socket
import sys
import uuid
from functools import partial

import grpc
import torch

from headway.config import load
from headway.cost import StepCurve
from headway.device import DeviceClient
from headway.engine_loop import EngineLoop
from headway.lease import Secrets
from headway.planning import Setting
from headway.server import Served, Service, StartError, mesh_secrets, run, upstream_credentials
from headway.telemetry import Span
from headway.upstream import Connection
from headway.v1 import common_pb2, text_pb2_grpc, worker_pb2
from headway.worker import Identity, LoadedAsset, LoopObserver, WorkerRuntime, registrations, worker_policy
from services.text_worker.config import TextWorkerConfig
from services.text_worker.costs import TextCosts, pulse, with_taking_in
from services.text_worker.cpu.compiled import share_torch_threads
from services.text_worker.drafting import Drafter
from services.text_worker.engine import TextEngine
from services.text_worker.kv.store import KvStore
from services.text_worker.lengths import LengthModel
from services.text_worker.loading import LoadedModel, calibrate, load_drafter, load_model, make_store
from services.text_worker.model.config import CheckpointError
from services.text_worker.prefixes import HeldPrefixes, NotedPrompts
from services.text_worker.publishing import Publisher
from services.text_worker.scheduler import TextScheduler
from services.text_worker.sequence import LADDER, Sequence
from services.text_worker.servicer import TextServicer
from services.text_worker.sharing.start import Upstream, start_sharing

log = logging.getLogger(__name__)

OVERHEAD_MS = 3.0  # from the last step to the answer on the wire: a hop to the event loop and one message
SWITCH_INTERVAL_S = 0.0005  # the event loop waits at most about this long for the engine's thread


async def build(config: TextWorkerConfig, service: Service) -> Served:
    """Loads, calibrates and starts the engine. Raises StartError."""
    if config.engine == "openai":
        from services.text_worker.remote.start import build_remote  # needs an HTTP client, which is an extra

        return await build_remote(config, service)
    _set_threads(config)
    device = DeviceClient(config.device_socket)
    service.closing.callback(device.close)
    try:
        loaded = load_model(config)
        store = make_store(config, loaded)
    except CheckpointError as error:
        raise StartError(f"model: {error}") from error
    costs = await asyncio.to_thread(calibrate, config, loaded, store, device)
    try:
        drafter = await asyncio.to_thread(load_drafter, config, loaded, device)
    except CheckpointError as error:
        raise StartError(str(error)) from error
    if config.kv_store is not None:
        costs = await asyncio.to_thread(with_taking_in, costs, store.pages, device)
    loop = _engine_loop(config, service, loaded, store, costs, device, drafter)
    loop.start()
    service.closing.push_async_callback(loop.stop)
    identity = _identity(config, loaded)
    runtime = WorkerRuntime(service, config, identity, loop, partial(complete_state, store, costs))
    upstream, secrets = await _upstream(config, service), mesh_secrets(config.lease_secret)
    prompts = await _publish(service, loaded, store, identity, upstream, secrets)
    sharing = await start_sharing(
        config, service, store, loaded.cache_fingerprint, costs, upstream=upstream, secrets=secrets, wake=loop.wake
    )
    log.info(
        "%s: %d parameters, context %d, %s on %s; KV cache %.0f MiB; decode step %.1f ms alone, %.1f ms at %d",
        loaded.name, loaded.model.parameters, loaded.context_tokens, config.weights, loaded.device,
        store.pages.size_bytes / 2**20, costs.decode.at(1).mean_ms, costs.decode.at(config.max_batch).mean_ms,
        config.max_batch,
    )  # fmt: skip

    def add(server: grpc.aio.Server) -> None:
        text_pb2_grpc.add_TextGenerationServicer_to_server(TextServicer(runtime, loaded, prompts, sharing), server)

    return registrations(runtime, "headway.v1.TextGeneration", add)


async def _upstream(config: TextWorkerConfig, service: Service) -> Upstream | None:
    """The way to the prefix cache, where there is one. Raises StartError for files that cannot be read."""
    if config.prefix_cache is None:
        return None
    credentials = upstream_credentials(config)
    connection = Connection(config.prefix_cache, credentials)
    service.closing.push_async_callback(connection.close)
    tasks = await service.closing.enter_async_context(asyncio.TaskGroup())
    service.closing.callback(tasks.create_task(connection.follow()).cancel)
    return Upstream(connection, credentials)


async def _publish(
    service: Service,
    loaded: LoadedModel,
    store: KvStore,
    identity: Identity,
    upstream: Upstream | None,
    secrets: Secrets | None,
) -> NotedPrompts | None:
    """Tells routers from now on which prompts are cached."""
    if upstream is None:
        return None
    held = HeldPrefixes(store.pool)
    publisher = Publisher(upstream.connection, upstream.credentials, identity.worker_id, held, service.clock)
    tasks = await service.closing.enter_async_context(asyncio.TaskGroup())
    service.closing.callback(tasks.create_task(publisher.run()).cancel)
    return NotedPrompts(held, asset_hash=loaded.hash, secrets=secrets)


def _set_threads(config: TextWorkerConfig) -> None:
    share_torch_threads()
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    sys.setswitchinterval(SWITCH_INTERVAL_S)


def _engine_loop(
    config: TextWorkerConfig,
    service: Service,
    loaded: LoadedModel,
    store: KvStore,
    costs: TextCosts,
    device: DeviceClient,
    drafter: Drafter | None,
) -> EngineLoop[Sequence]:
    planning = Setting(
        now_s=0.0,
        curve=StepCurve(costs.decode.points),
        max_batch=config.max_batch,
        rung_quantile=config.rung_quantile,
        admission_quantile=config.admission_quantile,
        failover_share=config.failover_share,
        overhead_ms=OVERHEAD_MS,
    )
    lengths = LengthModel()
    drafts = service.metrics.drafts

    def told(drafted: int, accepted: int) -> None:
        drafts.labels("accepted").inc(accepted)
        drafts.labels("refused").inc(drafted - accepted)

    scheduler = TextScheduler(costs, store.pool, planning, lengths, config.speculate, drafter)
    engine = TextEngine(loaded.model, store, costs, clock=service.clock, lengths=lengths, told=told, drafter=drafter)
    observer = LoopObserver(service, "text", config.max_batch)
    return EngineLoop(
        scheduler,
        engine,
        clock=service.clock,
        device=device,
        observer=observer,
        name="text",
        pulse=pulse(loaded.model, store.pages, costs),
        policy=worker_policy(config, [LADDER]),
    )


def _identity(config: TextWorkerConfig, loaded: LoadedModel) -> Identity:
    return Identity(
        worker_id=f"text-{uuid.uuid4().hex[:8]}",
        kind=common_pb2.KIND_TEXT,
        engine=loaded.device.type,
        device=str(loaded.device),
        device_id=config.device_id or f"{loaded.device}:{socket.gethostname()}",
        precision=config.weights,
        threads=torch.get_num_threads(),
        assets=(LoadedAsset(loaded.name, loaded.hash, LADDER),),
    )


def complete_state(store: KvStore, costs: TextCosts, state: worker_pb2.WorkerState, setting: Setting) -> None:
    """What only a text worker knows; as all costs in a state, at the host's present speed."""
    state.prefill_token_ms = costs.prefill.at(costs.chunk_tokens).mean_ms / costs.chunk_tokens * setting.scale.mean_ms
    state.queued_prefill_tokens = round(sum(load.setup_mean_ms for load in state.loads) / state.prefill_token_ms)
    state.free_kv_blocks, state.total_kv_blocks = store.pool.available, store.pool.blocks
    if (kept_s := store.pool.kept_s) is not None:
        state.kept_kv_ms = kept_s * 1000


def main() -> None:
    """The console script."""
    config = load(TextWorkerConfig, sys.argv[1:], prog="headway-text-worker")
    torch.set_num_interop_threads(1)
    run(config, "text-worker", partial(build, config), span=Span.WORKER_CALL)


if __name__ == "__main__":
    main()
