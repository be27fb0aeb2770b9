"""Which device the text engine runs on, and the checkpoint and cache that lie there."""

import logging
from importlib.util import find_spec

import torch

from services.text_worker.backend import Blocks, Model
from services.text_worker.config import TextWorkerConfig
from services.text_worker.cpu.model import CpuModel
from services.text_worker.kv.pages import Pages, blocks_for
from services.text_worker.model.architecture import Architecture
from services.text_worker.model.config import CheckpointError
from services.text_worker.speculation import MOST_DRAFTS

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LEAST_CAPABILITY = (8, 0)


def choose_device(settings: TextWorkerConfig, architecture: Architecture, context: int) -> torch.device:
    """Where steps run. Raises CheckpointError where a GPU was named that cannot serve this; `auto` goes on without."""
    reason = None if settings.device == "cpu" else _no_gpu(settings, architecture, context)
    if settings.device == "cuda" and reason is not None:
        raise CheckpointError(f"device: {reason}")
    if settings.device == "cpu" or reason is not None:
        if reason is not None and torch.cuda.is_available():
            log.warning("steps run on the CPU: %s", reason)
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _no_gpu(settings: TextWorkerConfig, architecture: Architecture, context: int) -> str | None:
    """Why a GPU cannot serve this; None where it can."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device on this host"
    if find_spec("triton") is None:
        return "triton is not installed; it comes with headway[kernels]"
    if torch.cuda.get_device_capability() < LEAST_CAPABILITY:
        return f"compute capability {torch.cuda.get_device_capability()} is below {LEAST_CAPABILITY}"
    return why_not(settings, architecture, context)


def why_not(settings: TextWorkerConfig, architecture: Architecture, context: int) -> str | None:
    """What of the settings and the model no GPU serves; None where one does."""
    from services.text_worker.cuda import model as cuda  # needs the kernels, which a CPU's worker may lack

    if settings.weights not in DTYPES:
        return f"weights {settings.weights} are served on a CPU alone; {' or '.join(DTYPES)} on a GPU"
    if settings.batch_invariant:
        return "batch_invariant is served on a CPU alone"
    return cuda.why_not(architecture, context)


def load_on(device: torch.device, settings: TextWorkerConfig, architecture: Architecture, context: int) -> Model:
    """Reads the weights and moves them there. Blocks. Raises CheckpointError."""
    if device.type == "cpu":
        return CpuModel.load(
            settings.model, architecture, settings.weights, context=context, invariant=settings.batch_invariant
        )
    from services.text_worker.cuda.model import CudaModel

    dtype = DTYPES[settings.weights]
    return CudaModel.load(settings.model, architecture, dtype, context=context, device=device)


def make_pages(settings: TextWorkerConfig, model: Model) -> Blocks:
    """The cache's memory beside the model, in its final size. Raises CheckpointError for too little or too much.

    On a GPU steps of few rows are captured over it, which takes seconds.
    """
    architecture = model.architecture
    if isinstance(model, CpuModel):
        element = model.element
        blocks = blocks_for(architecture, settings.kv_memory_mb, model.context, element.bytes_each)
        return Pages(architecture, blocks, element)
    from services.text_worker.cuda.model import CudaModel
    from services.text_worker.cuda.pages import CudaPages

    assert isinstance(model, CudaModel)
    dtype = DTYPES[settings.weights]
    blocks = blocks_for(architecture, settings.kv_memory_mb, model.context, dtype.itemsize)
    pages = CudaPages(architecture, blocks, dtype, model.device)
    model.prepare(pages, max(settings.max_batch, 1 + MOST_DRAFTS))
    return pages
