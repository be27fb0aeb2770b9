"""`config.json` of a Llama-family checkpoint, checked; what is not supported is refused by name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 64 * 2**20
SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM",)
SUPPORTED_ROPE = ("default", "linear", "llama3")
# Options whose other values would change the numbers; absent means the value here.
FIXED_OPTIONS: Mapping[str, Any] = {
    "hidden_act": "silu",
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
    "sliding_window": None,
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be served; the message names the file or field and the limit."""


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE's frequencies are stretched: `linear`, or `llama3` with its wavelength band."""

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes and options of one checkpoint; `context` in tokens, every size in elements."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    context: int
    rms_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    eos_ids: frozenset[int]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most `MAX_JSON_BYTES`. Raises CheckpointError naming the file."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path.name}: larger than {MAX_JSON_BYTES} bytes")
        parsed = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path.name}: not valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path.name}: must hold a JSON object")
    return parsed


def load_config(folder: Path) -> LlamaConfig:
    """Reads `folder/config.json`. Raises CheckpointError."""
    return parse_config(read_json(folder / "config.json"))


def parse_config(raw: Mapping[str, Any]) -> LlamaConfig:
    """A checked configuration from JSON in the layout of transformers 4 or 5. Raises CheckpointError."""
    _refuse_unsupported(raw)
    heads = _size(raw, "num_attention_heads", 1024)
    hidden = _size(raw, "hidden_size", 65_536)
    kv_heads = _size(raw, "num_key_value_heads", heads, default=heads)
    if heads % kv_heads:
        raise CheckpointError(f"num_key_value_heads: {kv_heads} does not divide num_attention_heads {heads}")
    if raw.get("head_dim") is None and hidden % heads:
        raise CheckpointError(f"num_attention_heads: {heads} does not divide hidden_size {hidden}")
    head_dim = _size(raw, "head_dim", 1024, default=hidden // heads)
    if head_dim % 2:
        raise CheckpointError(f"head_dim: {head_dim} is odd, rotary embeddings need an even one")
    vocab = _size(raw, "vocab_size", 4_194_304)
    theta, scaling = _rope(raw)
    return LlamaConfig(
        vocab=vocab,
        hidden=hidden,
        layers=_size(raw, "num_hidden_layers", 1024),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp=_size(raw, "intermediate_size", 1_048_576),
        context=_size(raw, "max_position_embeddings", 16_777_216, default=2048),
        rms_eps=_number(raw, "rms_norm_eps", 0.0, 1.0, default=1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=_flag(raw, "tie_word_embeddings"),
        attention_bias=_flag(raw, "attention_bias"),
        mlp_bias=_flag(raw, "mlp_bias"),
        eos_ids=token_ids(raw, "eos_token_id", vocab),
    )


def token_ids(raw: Mapping[str, Any], field: str, vocab: int) -> frozenset[int]:
    """The ids in a field that holds an id, a list of ids or null. Raises CheckpointError."""
    value = raw.get(field)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(i) is int and 0 <= i < vocab for i in ids):
        raise CheckpointError(f"{field}: must be token ids from 0 to {vocab - 1}, is {value!r:.80}")
    return frozenset(ids)


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    architectures = raw.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1:
        raise CheckpointError(f"architectures: must name one architecture, is {architectures!r:.80}")
    if architectures[0] not in SUPPORTED_ARCHITECTURES:
        known = ", ".join(SUPPORTED_ARCHITECTURES)
        raise CheckpointError(f"architectures: {architectures[0]!r:.80} is not supported; supported: {known}")
    for field, value in FIXED_OPTIONS.items():
        if raw.get(field, value) != value:
            raise CheckpointError(f"{field}: {raw[field]!r:.80} is not supported, only {value!r}")


def _rope(raw: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """theta and scaling; transformers 5 writes `rope_parameters`, 4 wrote `rope_theta` and `rope_scaling`."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise CheckpointError(f"rope_scaling: must be an object, is {rope!r:.80}")
    theta = _number({"rope_theta": raw.get("rope_theta"), **rope}, "rope_theta", 1.0, 1e12, default=10_000.0)
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError("rope_parameters.partial_rotary_factor: only 1.0 is supported")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in SUPPORTED_ROPE:
        raise CheckpointError(f"rope_scaling.rope_type: {kind!r:.80} is not supported; supported: {SUPPORTED_ROPE}")
    if kind == "default":
        return theta, None
    factor = _number(rope, "factor", 1.0, 1e6)
    if kind == "linear":
        return theta, RopeScaling(kind, factor)
    low = _number(rope, "low_freq_factor", 1e-6, 1e6)
    high = _number(rope, "high_freq_factor", 1e-6, 1e6)
    if high <= low:
        raise CheckpointError(f"rope_scaling.high_freq_factor: {high} must be over low_freq_factor {low}")
    original = _size(rope, "original_max_position_embeddings", 16_777_216)
    return theta, RopeScaling(kind, factor, low, high, original)


def _size(raw: Mapping[str, Any], field: str, limit: int, default: int | None = None) -> int:
    value = default if raw.get(field) is None else raw[field]
    if type(value) is not int or not 1 <= value <= limit:
        raise CheckpointError(f"{field}: must be a whole number from 1 to {limit}, is {value!r:.80}")
    return value


def _number(raw: Mapping[str, Any], field: str, low: float, high: float, default: float | None = None) -> float:
    value = default if raw.get(field) is None else raw[field]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise CheckpointError(f"{field}: must be a number from {low:g} to {high:g}, is {value!r:.80}")
    return float(value)


def _flag(raw: Mapping[str, Any], field: str) -> bool:
    value = raw.get(field, False)
    if not isinstance(value, bool):
        raise CheckpointError(f"{field}: must be true or false, is {value!r:.80}")
    return value
