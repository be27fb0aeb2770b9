"""Loads a checkpoint as the worker serves it: checked, measured, named."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from headway import __version__
from headway.calibration import MEASURED_WITHIN_S, Soon, cache_folder, calibrated
from headway.engine import Device
from headway.prefix import model_fingerprint
from services.text_worker.backend import Model
from services.text_worker.config import TextWorkerConfig
from services.text_worker.costs import TextCosts, costs_of, measure, probe
from services.text_worker.cpu.model import CpuModel
from services.text_worker.drafting import Drafter
from services.text_worker.hardware import choose_device, load_on, make_pages
from services.text_worker.kv.pages import Pages, blocks_for
from services.text_worker.kv.store import KvStore
from services.text_worker.model.config import CheckpointError
from services.text_worker.model.families import load_architecture
from services.text_worker.model.weights import fingerprint
from services.text_worker.sampling import Sampling
from services.text_worker.speculation import MOST_DRAFTS
from services.text_worker.structure import Structures
from services.text_worker.tokenizer import TextTokenizer, load_sampling, load_tokenizer

MOST_DEFAULT_CONTEXT = 4096


@dataclass(frozen=True)
class LoadedModel:
    """One checkpoint, ready to serve."""

    name: str
    hash: str
    model: Model
    device: torch.device
    tokenizer: TextTokenizer
    sampling: Sampling
    """What a request that says nothing gets."""
    context_tokens: int
    cache_fingerprint: bytes
    """Names what makes keys and values: the checkpoint, what of the settings changes them, and the code. 32 bytes."""
    structures: Structures

    @property
    def vocabulary(self) -> int:
        return self.model.architecture.vocab


def load_model(settings: TextWorkerConfig) -> LoadedModel:
    """Reads and checks every file. Blocks. Raises CheckpointError naming the file or field."""
    architecture = load_architecture(settings.model)
    context = settings.context_tokens or min(architecture.context, MOST_DEFAULT_CONTEXT)
    if context > architecture.context:
        raise CheckpointError(f"context_tokens: {context} is over the model's {architecture.context}")
    tokenizer, found = load_tokenizer(settings.model, architecture), fingerprint(settings.model)
    device = choose_device(settings, architecture, context)
    model = load_on(device, settings, architecture, context)
    return LoadedModel(
        name=settings.model_name or _card_name(settings.model) or settings.model.resolve().name,
        hash=found,
        model=model,
        device=device,
        tokenizer=tokenizer,
        sampling=load_sampling(settings.model),
        context_tokens=context,
        cache_fingerprint=kv_fingerprint(settings, found, device, context, attention_of(model)),
        structures=Structures(tokenizer, architecture.vocab),
    )


def attention_of(model: Model) -> str:
    """How attention computes, and in how many bits keys and values are kept; a GPU's goes by its weights."""
    return model.attention if isinstance(model, CpuModel) else "device"


def kv_fingerprint(settings: TextWorkerConfig, model: str, device: torch.device, context: int, attention: str) -> bytes:
    """Equal where the same keys and values would be computed: turns by position may depend on the served context."""
    invariant = settings.batch_invariant or settings.weights == "int8"
    traits = {"model": model, "engine": device.type, "weights": settings.weights, "version": __version__}
    return model_fingerprint(
        (), {**traits, "context": str(context), "batch invariant": str(invariant), "attention": attention}
    )


def make_store(settings: TextWorkerConfig, loaded: LoadedModel) -> KvStore:
    """The KV cache, in its final size. Raises CheckpointError when it is too small, or the memory is not there."""
    return KvStore(make_pages(settings, loaded.model))


def calibrate(settings: TextWorkerConfig, loaded: LoadedModel, store: KvStore, device: Device) -> TextCosts:
    """What steps cost on this host: kept from an earlier start, else measured. Blocks for a second or two."""
    return _calibrate(settings, loaded.hash, loaded.device, loaded.model, store, device)


def _calibrate(
    settings: TextWorkerConfig, name: str, on: torch.device, model: Model, store: KvStore, device: Device
) -> TextCosts:
    chunk = min(settings.prefill_chunk, model.context)
    rows, threads = max(settings.max_batch, 1 + MOST_DRAFTS), torch.get_num_threads()
    sizes = (rows, MOST_DRAFTS, int(settings.batch_invariant), model.context, chunk, threads)
    arithmetic = (settings.weights, attention_of(model))
    curves = calibrated(
        cache_folder(settings.cache_dir),
        key=(_name_of(on), __version__, torch.__version__, name, *arithmetic, *map(str, sizes)),
        measure=lambda: measure(
            model,
            store.pages,
            max_batch=settings.max_batch,
            chunk_tokens=chunk,
            device=Soon(device, MEASURED_WITHIN_S),
        ),
        probe=lambda: probe(model, store.pages, Soon(device)),
    )
    return costs_of(curves, chunk)


def load_drafter(settings: TextWorkerConfig, loaded: LoadedModel, device: Device) -> Drafter | None:
    """The draft model, checked against the one that it guesses for, and measured; None where none is configured.

    Blocks. Raises CheckpointError.
    """
    folder = settings.draft_model
    if folder is None:
        return None
    if loaded.device.type != "cpu":
        raise CheckpointError("draft_model: is served on a CPU alone")
    try:
        architecture = load_architecture(folder)
        if architecture.vocab != loaded.vocabulary:
            raise CheckpointError(f"vocab_size {architecture.vocab} is not the model's {loaded.vocabulary}")
        if load_tokenizer(folder, architecture).vocabulary != loaded.tokenizer.vocabulary:
            raise CheckpointError("tokenizer.json: its tokens are not the model's")
        context = min(architecture.context, loaded.context_tokens)
        model = CpuModel.load(folder, architecture, settings.weights, context=context)
        blocks = blocks_for(architecture, settings.draft_kv_memory_mb, context, model.element.bytes_each)
        store = KvStore(Pages(architecture, blocks, model.element))
    except CheckpointError as error:
        raise CheckpointError(f"draft_model: {error}") from error
    costs = _calibrate(settings, fingerprint(folder), loaded.device, model, store, device)
    return Drafter(model, store, costs)


def _name_of(device: torch.device) -> str:
    """As costs know it."""
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


def _card_name(folder: Path) -> str | None:
    """The name on the model's card; cards are not part of the checkpoint, so a bad one is only passed over."""
    with suppress(OSError, ValueError):
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        name = card.get("name") if isinstance(card, dict) else None
        return name if isinstance(name, str) and 0 < len(name) <= 128 else None
    return None
