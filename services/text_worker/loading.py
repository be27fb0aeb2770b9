"""Loads a checkpoint as the worker serves it: checked, measured, named."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from headway import __version__
from headway.calibration import cache_folder, calibrated
from headway.engine import Device
from services.text_worker.config import PRECISIONS, TextWorkerConfig
from services.text_worker.costs import TextCosts, costs_of, measure, probe
from services.text_worker.model.cache import KvCache
from services.text_worker.model.config import CheckpointError
from services.text_worker.model.dense import DenseModel
from services.text_worker.model.families import load_architecture
from services.text_worker.model.weights import fingerprint
from services.text_worker.sampling import Sampling
from services.text_worker.structure import Structures
from services.text_worker.tokenizer import TextTokenizer, load_sampling, load_tokenizer

MOST_DEFAULT_CONTEXT = 4096
ENGINE = "torch-cpu"


@dataclass(frozen=True)
class LoadedModel:
    """One checkpoint, ready to serve."""

    name: str
    hash: str
    model: DenseModel
    tokenizer: TextTokenizer
    sampling: Sampling
    """What a request that says nothing gets."""
    context_tokens: int
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
    tokenizer = load_tokenizer(settings.model, architecture)
    return LoadedModel(
        name=settings.model_name or _card_name(settings.model) or settings.model.resolve().name,
        hash=fingerprint(settings.model),
        model=DenseModel.load(settings.model, architecture, PRECISIONS[settings.precision], context=context),
        tokenizer=tokenizer,
        sampling=load_sampling(settings.model),
        context_tokens=context,
        structures=Structures(tokenizer, architecture.vocab),
    )


def make_cache(settings: TextWorkerConfig, loaded: LoadedModel) -> KvCache:
    """The KV cache, in its final size. Raises CheckpointError when the memory is not there."""
    try:
        return KvCache(
            loaded.model.architecture,
            slots=settings.slots,
            context=loaded.context_tokens,
            dtype=PRECISIONS[settings.precision],
        )
    except (RuntimeError, MemoryError) as error:
        raise CheckpointError(f"slots: no memory for {settings.slots} of {loaded.context_tokens} tokens") from error


def calibrate(settings: TextWorkerConfig, loaded: LoadedModel, cache: KvCache, device: Device) -> TextCosts:
    """What steps cost on this host: kept from an earlier start, else measured. Blocks for a second or two."""
    chunk = min(settings.prefill_chunk, loaded.context_tokens)
    sizes = (settings.max_batch, settings.slots, loaded.context_tokens, chunk, torch.get_num_threads())
    curves = calibrated(
        cache_folder(settings.cache_dir),
        key=(ENGINE, __version__, torch.__version__, loaded.hash, settings.precision, *map(str, sizes)),
        measure=lambda: measure(loaded.model, cache, max_batch=settings.max_batch, chunk_tokens=chunk, device=device),
        probe=lambda: probe(loaded.model, cache, device),
    )
    return costs_of(curves, chunk)


def _card_name(folder: Path) -> str | None:
    """The name on the model's card; cards are not part of the checkpoint, so a bad one is only passed over."""
    with suppress(OSError, ValueError):
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        name = card.get("name") if isinstance(card, dict) else None
        return name if isinstance(name, str) and 0 < len(name) <= 128 else None
    return None
