"""Settings of the text worker."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, DirectoryPath, model_validator

from headway.config import Address, OrOff, Target, UpstreamConfig, WorkerConfig, setting
from headway.redis_url import check_redis_url
from services.text_worker.speculation import Mode

_CHECKOUT_MODEL = Path(__file__).parents[2] / "models" / "text"
_PACKAGED_MODEL = Path(__file__).parents[2] / "headway" / "assets" / "text"
MIN_KV_MEMORY_MB, MAX_KV_MEMORY_MB = 1, 2**24


def default_model() -> Path:
    """The model that ships with Headway: in a checkout, else in the installed package."""
    return _CHECKOUT_MODEL if _CHECKOUT_MODEL.exists() else _PACKAGED_MODEL


def _check_kv_store(value: str | None) -> str | None:
    return value if value in (None, "grpc") else check_redis_url(value)


class TextWorkerConfig(WorkerConfig, UpstreamConfig):
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
    weights: Literal["fp32", "bf16", "int8"] = setting(
        "fp32", "how matrices are kept and multiplied; int8 is quantised at start", group="Model", unit="KIND"
    )
    batch_invariant: bool = setting(
        False,
        "a request's tokens are the same bits whatever runs beside it; costs fp32 speed, int8 none, bf16 none with AMX",
        group="Model",
    )
    engine: Literal["own", "openai"] = setting(
        "own", "what computes: this worker, or an OpenAI-compatible server behind it", group="Model", unit="KIND"
    )
    base_url: Annotated[str | None, OrOff] = setting(
        None, "the server of engine openai, e.g. http://host:8000/v1", group="Model", unit="URL", pattern="^https?://.+"
    )
    remote_model: Annotated[str | None, OrOff] = setting(
        None, "the model's name at that server; off: its first", group="Model", unit="NAME", max_length=512
    )
    remote_api_key: Annotated[str | None, OrOff] = setting(
        None, "the key for that server; best in the environment", group="Model", unit="KEY", max_length=4096, repr=False
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto",
        "where steps run; auto: on a GPU where there is one that serves the model in these weights",
        group="Device",
        unit="NAME",
    )
    context_tokens: Annotated[int | None, OrOff] = setting(
        None,
        "most tokens of prompt and answer together; off: what the model was trained for, at most 4096",
        group="Model",
        unit="N",
        ge=2,
        le=1_048_576,
    )
    prefix_cache: Annotated[Target | None, OrOff] = setting(
        None, "the prefix cache, where routers learn which prompts' beginnings are cached here; off: they do not",
        group="Mesh", unit="HOST:PORT",
    )  # fmt: skip
    kv_store: Annotated[str | None, OrOff, AfterValidator(_check_kv_store)] = setting(
        None, "where workers share keys and values of prompts' beginnings: redis://HOST:PORT/DB or unix:///PATH, or "
        "grpc: through --prefix-cache; off: not", group="Mesh", unit="URL",
    )  # fmt: skip
    kv_store_ttl_s: float = setting(
        3600.0, "how long a block is kept there", group="Mesh", unit="SECONDS", ge=1, le=86_400, allow_inf_nan=False
    )
    kv_store_write_mib_s: float = setting(
        32.0, "most that is written there in a second", group="Mesh", unit="MIB", gt=0, le=10_000, allow_inf_nan=False
    )
    kv_store_sightings: int = setting(
        2, "how often a prompt's beginning must have been asked for to be written there",
        group="Mesh", unit="N", ge=1, le=1000,
    )  # fmt: skip
    max_batch: int = setting(16, "most sequences in a step", group="Engine", unit="N", ge=1, le=1024)
    kv_memory_mb: int = setting(
        256,
        "memory for keys and values; sized once at start",
        group="Engine",
        unit="MIB",
        ge=MIN_KV_MEMORY_MB,
        le=MAX_KV_MEMORY_MB,
    )
    speculate: Mode = setting(
        "auto",
        "guess tokens and check several in a step, by what repeats the text so far and by draft_model: auto where that "
        "brings more tokens a millisecond, lookup or draft by that alone wherever deadlines bear it; the tokens are "
        "the same either way",
        group="Engine",
        unit="MODE",
    )
    draft_model: Annotated[DirectoryPath | None, OrOff] = setting(
        None, "folder of a smaller checkpoint with the same tokens, which guesses what the model will say; off: none",
        group="Engine", unit="DIR",
    )  # fmt: skip
    draft_kv_memory_mb: int = setting(
        64, "memory for the draft model's keys and values; sized once at start", group="Engine", unit="MIB",
        ge=MIN_KV_MEMORY_MB, le=MAX_KV_MEMORY_MB,
    )  # fmt: skip
    prefill_chunk: int = setting(
        128, "most prompt tokens run in one step", group="Engine", unit="TOKENS", ge=16, le=65_536
    )

    @model_validator(mode="after")
    def _an_engine_elsewhere_has_an_address(self) -> Self:
        if (self.engine == "openai") != (self.base_url is not None):
            raise ValueError("base_url: belongs to engine openai, which needs it")
        return self

    @model_validator(mode="after")
    def _a_draft_model_is_asked(self) -> Self:
        if self.draft_model is None:
            if self.speculate == "draft":
                raise ValueError("speculate: draft needs draft_model")
            return self
        if self.engine != "own":
            raise ValueError("draft_model: belongs to engine own")
        if self.speculate not in ("draft", "auto"):
            raise ValueError(f"draft_model: speculate {self.speculate} does not ask it; draft or auto do")
        return self

    @model_validator(mode="after")
    def _the_kv_store_can_be_reached(self) -> Self:
        if self.kv_store == "grpc" and self.prefix_cache is None:
            raise ValueError("kv_store: grpc goes through prefix_cache, which is off")
        return self
