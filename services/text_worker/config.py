"""Settings of the text worker."""

from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import DirectoryPath, model_validator

from headway.config import Address, OrOff, WorkerConfig, setting

_CHECKOUT_MODEL = Path(__file__).parents[2] / "models" / "text"
_PACKAGED_MODEL = Path(__file__).parents[2] / "headway" / "assets" / "text"
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def default_model() -> Path:
    """The model that ships with Headway: in a checkout, else in the installed package."""
    return _CHECKOUT_MODEL if _CHECKOUT_MODEL.exists() else _PACKAGED_MODEL


class TextWorkerConfig(WorkerConfig):
    """Serves text from a checkpoint of a known family in Hugging Face layout."""

    listen: Address = setting(
        "127.0.0.1:50061", "address to serve gRPC on; port 0 picks a free one", group="Serving", unit="HOST:PORT"
    )
    model: DirectoryPath = setting(
        default_model(),
        "folder of the checkpoint: config.json, *.safetensors, tokenizer.json",
        group="Model",
        unit="DIR",
        validate_default=True,
    )
    model_name: Annotated[str | None, OrOff] = setting(
        None, "name for requests; off: the card's, else the folder's", group="Model", unit="NAME", max_length=128
    )
    precision: Literal["float32", "bfloat16"] = setting(
        "float32", "precision of weights and arithmetic", group="Model", unit="NAME"
    )
    context_tokens: Annotated[int | None, OrOff] = setting(
        None,
        "most tokens of prompt and answer together; off: what the model was trained for, at most 4096",
        group="Model",
        unit="N",
        ge=2,
        le=1_048_576,
    )
    max_batch: int = setting(16, "most sequences in a step", group="Engine", unit="N", ge=1, le=1024)
    slots: int = setting(
        32,
        "sequences that the KV cache holds at once, at least max_batch; sized once at start",
        group="Engine",
        unit="N",
        ge=1,
        le=4096,
    )
    prefill_chunk: int = setting(
        128, "most prompt tokens run in one step", group="Engine", unit="TOKENS", ge=16, le=65_536
    )

    @model_validator(mode="after")
    def _slots_hold_a_batch(self) -> Self:
        if self.slots < self.max_batch:
            raise ValueError(f"slots: {self.slots} are fewer than the {self.max_batch} of max_batch")
        return self
