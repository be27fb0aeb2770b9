"""Which device steps run on, how precisely, on how many threads, and how large they are: measured at the start."""

import logging
from dataclasses import dataclass
from functools import partial

import torch

from headway.calibration import MEASURED_WITHIN_S, Soon, cache_folder, calibrated
from headway.engine import Device
from headway.server import StartError
from services.dit_worker import costs
from services.dit_worker.config import DitWorkerConfig
from services.dit_worker.cuda_stepper import GRAPH_SIZES, CudaStepper
from services.dit_worker.model.checkpoint import Checkpoint
from services.dit_worker.model.decoder import Decoder, Latents
from services.dit_worker.model.dit import Dit
from services.dit_worker.scheduler import STEPS, ImageCosts
from services.dit_worker.serving_network import serving_network
from services.dit_worker.stepper import CpuStepper, Stepper

log = logging.getLogger(__name__)

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MOST_ROWS = 1 << 20


@dataclass(frozen=True, slots=True)
class Hardware:
    """What steps run on. `costs` hold at `threads`, which torch is set to."""

    engine: str
    device: str
    precision: str
    threads: int
    flow: Dit
    stepper: Stepper
    decoder: Decoder
    max_batch: int
    """Images in a step: as many as still pay, unless the configuration says how many."""
    costs: ImageCosts


def prepare(config: DitWorkerConfig, model: Checkpoint, lease: Device) -> Hardware:
    """Measures what was not measured before, under device leases; blocks. Call it in one thread: torch's number of
    threads belongs to the thread that sets it, and to those that are started later.

    Raises StartError for a device that is not there.
    """
    device, precision = _device(config), config.precision
    if precision == "auto":
        precision = "float32" if device.type == "cpu" else "float16"
    flow = serving_network(model.network, PRECISIONS[precision]).to(device)
    decoder = _on(device, model.decoder)
    folder, fingerprint = cache_folder(config.cache_dir), model.config.fingerprint
    threads = _threads(config, flow, lease, ("dit-threads", torch.__version__, fingerprint, precision))
    torch.set_num_threads(threads)
    whole = _whole(flow, device, config.max_batch)
    key = ("dit", str(device), torch.__version__, fingerprint, precision, str(threads), str(config.max_batch))
    curves = calibrated(
        folder,
        key=key,
        measure=partial(costs.measure, flow, whole, decoder, Soon(lease, MEASURED_WITHIN_S), config.max_batch),
        probe=partial(costs.probe, flow, whole, Soon(lease)),
    )
    size = config.max_batch or costs.efficient_size(curves[STEPS])
    stepper = CpuStepper(flow, size) if device.type == "cpu" else whole
    log.info("steps run on %s, %s, %d threads; %d images in a pass", device, precision, threads, size)
    return Hardware(
        f"torch-{device.type}",
        str(device),
        precision,
        threads,
        flow,
        stepper,
        decoder,
        size,
        costs.image_costs(curves, size, max(size, config.max_images)),
    )


def _device(config: DitWorkerConfig) -> torch.device:
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise StartError("device: torch finds no CUDA device on this host")
    return torch.device("cuda", torch.cuda.current_device())


def _on(device: torch.device, decoder: Decoder) -> Decoder:
    return Latents(decoder.network.to(device)) if isinstance(decoder, Latents) else decoder


def _whole(flow: Dit, device: torch.device, max_batch: int | None) -> Stepper:
    """Takes every step that is measured in one pass."""
    if device.type == "cpu":
        return CpuStepper(flow, MOST_ROWS)
    return CudaStepper(flow, device, max_batch or GRAPH_SIZES[-1])


def _threads(config: DitWorkerConfig, flow: Dit, lease: Device, key: tuple[str, ...]) -> int:
    """As configured, else the number with which a step was measured to be quickest; 1 where a GPU does the work."""
    if config.threads is not None:
        return config.threads
    if next(flow.parameters()).device.type != "cpu":
        return 1
    cores = costs.usable_cores()
    if cores == 1:
        return 1
    curves = calibrated(
        cache_folder(config.cache_dir),
        key=(*key, str(cores)),
        measure=partial(costs.measure_threads, flow, Soon(lease, MEASURED_WITHIN_S)),
        probe=partial(costs.probe_threads, flow, Soon(lease)),
    )
    threads = costs.fastest_threads(curves)
    log.info("a step is quickest on %d of %d cores", threads, cores)
    return threads
