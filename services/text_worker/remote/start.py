"""Starts the text worker in front of a remote server: finds its model, measures it, and serves it."""

import asyncio
import hashlib
import itertools
import logging
import time
import uuid
from collections.abc import Sequence

import grpc

from headway.calibration import cost_of
from headway.cost import Cost, StepCurve
from headway.device import DeviceClient
from headway.engine_loop import EngineLoop
from headway.errors import HeadwayError, WorkerLost
from headway.planning import Setting
from headway.server import Served, Service, StartError
from headway.v1 import common_pb2, text_pb2, text_pb2_grpc
from headway.worker import Identity, LoadedAsset, LoopObserver, WorkerRuntime, registrations
from services.text_worker.config import TextWorkerConfig
from services.text_worker.costs import TextCosts
from services.text_worker.remote.engine import RemoteEngine, RemoteScheduler
from services.text_worker.remote.protocol import Piece, call_of
from services.text_worker.remote.servicer import RemoteTextServicer
from services.text_worker.remote.streams import Streams
from services.text_worker.sequence import LADDER

log = logging.getLogger(__name__)

ENGINE = "openai"
OVERHEAD_MS = 5.0
DEFAULT_CONTEXT = 4096
PROBE_TOKENS = 16
PROBE_PATIENCE_S = 120.0
PROBE_PROMPT = "Once upon a time"


async def build_remote(config: TextWorkerConfig, service: Service) -> Served:
    """Connects and measures. Raises StartError."""
    assert config.base_url is not None  # the configuration asks for it with this engine
    streams = Streams(config.base_url, config.remote_api_key)
    service.closing.callback(streams.close)
    try:
        model, context = await asyncio.to_thread(_find_model, streams, config)
        costs = await asyncio.to_thread(measure, streams, model, config.max_batch)
    except HeadwayError as error:
        raise StartError(f"base_url: {error.message}") from error
    streams.watch_load()
    loop = _engine_loop(config, service, costs, streams)
    loop.start()
    service.closing.push_async_callback(loop.stop)
    identity = _identity(config, model)
    runtime = WorkerRuntime(service, config, identity, loop)
    log.info("%s at %s: %.1f ms a token", model, config.base_url, costs.decode.at(1).mean_ms)

    def add(server: grpc.aio.Server) -> None:
        text_pb2_grpc.add_TextGenerationServicer_to_server(RemoteTextServicer(runtime, model, context), server)

    return registrations(runtime, "headway.v1.TextGeneration", add)


def _find_model(streams: Streams, config: TextWorkerConfig) -> tuple[str, int]:
    """Its name at the server, and the most tokens of prompt and answer together."""
    try:
        models = {model["id"]: model for model in streams.models()}
    except WorkerLost:
        if config.remote_model is None:
            raise
        models = {}  # some servers cannot list what they serve; the measurement shows whether it is there
    name = config.remote_model or next(iter(models), None)
    if name is None:
        raise StartError("base_url: the server lists no model; name one with remote_model")
    told = models.get(name, {}).get("max_model_len")
    return name, config.context_tokens or (told if isinstance(told, int) and told > 1 else DEFAULT_CONTEXT)


def measure(streams: Streams, model: str, max_batch: int) -> TextCosts:
    """What a step costs alone and together, over real answers. Blocks for seconds. Raises the server's refusal."""
    _answers(streams, model, 1)  # the first one loads and compiles
    sizes = sorted({1, min(4, max_batch)})
    answers = [_answers(streams, model, size) for size in sizes]
    steps = [cost_of(gaps_ms or [first_s * 1000]) for first_s, gaps_ms in answers]
    prefill_ms = answers[0][0] * 1000
    prefill = Cost(prefill_ms, (0.1 * prefill_ms) ** 2)
    return TextCosts(StepCurve(tuple(zip(sizes, steps, strict=True))), StepCurve(((1, prefill),)), 1)


def _answers(streams: Streams, model: str, count: int) -> tuple[float, list[float]]:
    """Seconds to the first token, and milliseconds between steps, of answers that run together."""
    request = text_pb2.GenerateRequest(text=PROBE_PROMPT, sampling=text_pb2.Sampling(temperature=0))
    keys = set(range(-count, 0))
    start_s = time.monotonic()
    for key in keys:
        streams.start(key, call_of(request, model, PROBE_TOKENS))
    times_s: list[float] = []
    while keys and time.monotonic() - start_s < PROBE_PATIENCE_S:
        for arrived in streams.wait(keys, timeout_s=1.0, grace_s=0.05):
            if isinstance(arrived.event, HeadwayError):
                raise arrived.event
            if arrived.event is None:
                keys.discard(arrived.key)
                streams.cancel(arrived.key)
            elif isinstance(arrived.event, Piece) and arrived.event.tokens and arrived.key == -1:
                times_s.append(time.monotonic())
    if keys or not times_s:
        raise StartError(f"base_url: the server gave no answer within {PROBE_PATIENCE_S:g} s")
    return times_s[0] - start_s, _gaps_ms(times_s)


def _gaps_ms(times_s: Sequence[float]) -> list[float]:
    """Between arrivals; pieces that came together share theirs."""
    gaps_ms = [(after - before) * 1000 for before, after in itertools.pairwise(times_s)]
    mean_ms = sum(gaps_ms) / len(gaps_ms) if gaps_ms else 0.0
    return [max(gap, mean_ms) for gap in gaps_ms]


def _engine_loop(config: TextWorkerConfig, service: Service, costs: TextCosts, streams: Streams) -> EngineLoop:  # type: ignore[type-arg]
    planning = Setting(
        now_s=0.0,
        curve=costs.decode,
        max_batch=config.max_batch,
        rung_quantile=config.rung_quantile,
        admission_quantile=config.admission_quantile,
        failover_share=config.failover_share,
        overhead_ms=OVERHEAD_MS,
    )
    device = DeviceClient(None)  # the server's device is not shared with workers here
    service.closing.callback(device.close)
    return EngineLoop(
        RemoteScheduler(costs, planning, streams),
        RemoteEngine(streams),
        clock=service.clock,
        device=device,
        observer=LoopObserver(service, "text", config.max_batch),
        name="text",
    )


def _identity(config: TextWorkerConfig, model: str) -> Identity:
    named = hashlib.sha256(f"{config.base_url}\0{model}".encode()).hexdigest()  # its weights are not to be seen
    return Identity(
        worker_id=f"text-{uuid.uuid4().hex[:8]}",
        kind=common_pb2.KIND_TEXT,
        engine=ENGINE,
        device="remote",
        device_id=config.device_id or f"openai:{config.base_url}",
        precision="remote",
        threads=0,
        assets=(LoadedAsset(config.model_name or model, named, LADDER),),
    )
