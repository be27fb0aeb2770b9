"""Rotary position embeddings (Su et al. 2021): read from config.json, and their tables.

Scalings: linear (Chen et al. 2023), llama3 as published with Llama 3.1, YaRN (Peng et al. 2023), LongRoPE (Ding et
al. 2024). `dynamic` changes nothing within the trained context, and more than that is never served.
"""

import math
from typing import Any

import torch
from torch import Tensor

from services.text_worker.model.architecture import Rope
from services.text_worker.model.config import MAX_CONTEXT, CheckpointError, Fields

KINDS = ("default", "dynamic", "linear", "llama3", "yarn", "longrope")
OLD_NAMES = {"su": "longrope"}
MAX_THETA = 1e12


def read_rope(fields: Fields, head_dim: int, context: int, *, theta: float = 10_000.0, partial: bool = False) -> Rope:
    """From a whole config.json; transformers 5 writes `rope_parameters`, 4 wrote `rope_theta` and `rope_scaling`.

    `theta` is the family's own default; `partial`, that it may turn a part of each head. Raises CheckpointError.
    """
    part = fields.part("rope_parameters") or fields.part("rope_scaling") or Fields({}, "rope_scaling.")
    around = {name: fields.raw.get(name) for name in ("rope_theta", "partial_rotary_factor")}
    around["original_max_position_embeddings"] = fields.raw.get("original_max_position_embeddings")
    given = {name: value for name, value in part.raw.items() if value is not None}
    together = Fields(around | given, part.inside)
    if not partial:
        together.only("partial_rotary_factor", 1.0, 1)
    return rope_of(together, head_dim, context, theta=theta)


def rope_of(part: Fields, head_dim: int, context: int, *, theta: float = 10_000.0) -> Rope:
    """From one object of rope parameters. Raises CheckpointError."""
    given: Any = part.raw.get("rope_type", part.raw.get("type", "default"))
    kind = OLD_NAMES.get(given, given) if isinstance(given, str) else given
    if kind not in KINDS:
        raise CheckpointError(f"{part.inside}rope_type: {given!r:.80} is not supported; supported: {KINDS}")
    rotary_dim = int(head_dim * part.number("partial_rotary_factor", 1e-3, 1.0, default=1.0))
    if rotary_dim < 2 or rotary_dim % 2:
        raise part.bad("partial_rotary_factor", f"must leave an even part of head_dim {head_dim}", rotary_dim)
    base = part.number("rope_theta", 1.0 + 1e-6, MAX_THETA, default=theta)
    match kind:
        case "linear":
            return Rope(base, rotary_dim, "linear", part.number("factor", 1.0, 1e6))
        case "llama3":
            return _llama3(part, base, rotary_dim)
        case "yarn":
            return _yarn(part, base, rotary_dim, context)
        case "longrope":
            return _longrope(part, base, rotary_dim, context)
        case _:
            return Rope(base, rotary_dim)


def _llama3(part: Fields, theta: float, rotary_dim: int) -> Rope:
    low = part.number("low_freq_factor", 1e-6, 1e6)
    high = part.number("high_freq_factor", 1e-6, 1e6)
    if high <= low:
        raise part.bad("high_freq_factor", f"must be over low_freq_factor {low}", high)
    original = part.size("original_max_position_embeddings", MAX_CONTEXT)
    return Rope(theta, rotary_dim, "llama3", part.number("factor", 1.0, 1e6), low, high, original)


def _yarn(part: Fields, theta: float, rotary_dim: int, context: int) -> Rope:
    original = part.size("original_max_position_embeddings", MAX_CONTEXT)
    factor = part.number("factor", 1.0, 1e6, default=max(1.0, context / original))
    over, under = (part.maybe_number(name, 1e-6, 1e3) for name in ("mscale", "mscale_all_dim"))
    amplitude = _yarn_amplitude(factor, over) / _yarn_amplitude(factor, under) if over and under else None
    return Rope(
        theta,
        rotary_dim,
        "yarn",
        factor,
        original_context=original,
        amplitude=part.number("attention_factor", 1e-6, 1e6, default=amplitude or _yarn_amplitude(factor, 1.0)),
        slow_turns=part.number("beta_slow", 1e-6, 1e6, default=1.0),
        fast_turns=part.number("beta_fast", 1e-6, 1e6, default=32.0),
        truncated=part.flag("truncate", default=True),
    )


def _yarn_amplitude(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0


def _longrope(part: Fields, theta: float, rotary_dim: int, context: int) -> Rope:
    original = part.size("original_max_position_embeddings", MAX_CONTEXT, default=context)
    factor = part.number("factor", 1e-3, 1e6, default=context / original)
    stretched = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    return Rope(
        theta,
        rotary_dim,
        "longrope",
        original_context=original,
        amplitude=part.number("attention_factor", 1e-6, 1e6, default=stretched),
        short_factors=part.numbers("short_factor", rotary_dim // 2, 1e-6, 1e6),
        long_factors=part.numbers("long_factor", rotary_dim // 2, 1e-6, 1e6),
    )


def rotary_tables(rope: Rope, head_dim: int, context: int) -> tuple[Tensor, Tensor]:
    """cos and sin for positions 0 to context - 1, fp32, each [context, head_dim / 2].

    Element i of a head turns with element i + head_dim / 2. Elements beyond `rotary_dim` stand still (cos 1, sin 0):
    the weights' rows are put in this order when they are loaded. `context` is what is served, which LongRoPE looks at.
    """
    angles = torch.outer(torch.arange(context).float(), _frequencies(rope, context))  # [context, rotary_dim / 2]
    still = (0, (head_dim - rope.rotary_dim) // 2)
    cos, sin = angles.cos() * rope.amplitude, angles.sin() * rope.amplitude
    return torch.nn.functional.pad(cos, still, value=1.0), torch.nn.functional.pad(sin, still, value=0.0)


def rotary_order(rope: Rope, head_dim: int) -> Tensor:
    """The order in which a head's rows of a checkpoint's query and key weights are kept, so that halves pair up."""
    half, rest = rope.rotary_dim // 2, (head_dim - rope.rotary_dim) // 2
    rotated, still = torch.arange(rope.rotary_dim), torch.arange(rope.rotary_dim, head_dim)
    return torch.cat((rotated[:half], still[:rest], rotated[half:], still[rest:]))


def _frequencies(rope: Rope, context: int) -> Tensor:
    """Radians a position, fp32 [rotary_dim / 2]."""
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.int64).float() / rope.rotary_dim
    inverse = 1.0 / rope.theta**exponents
    match rope.kind:
        case "linear":
            return inverse / rope.factor
        case "llama3":
            turns = rope.original_context * inverse / (2 * math.pi)  # rotations over the original context
            kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
            return _blended(inverse, rope.factor, kept.clamp(0.0, 1.0))
        case "yarn":
            return _blended(inverse, rope.factor, _yarn_kept(rope))
        case "longrope":
            factors = rope.long_factors if context > rope.original_context else rope.short_factors
            return 1.0 / (torch.tensor(factors) * rope.theta**exponents)
        case _:
            return inverse


def _blended(inverse: Tensor, factor: float, kept: Tensor) -> Tensor:
    """`kept` is the share of the unscaled frequency."""
    return kept * inverse + (1 - kept) * inverse / factor


def _yarn_kept(rope: Rope) -> Tensor:
    low, high = (_dimension_of(rope, turns) for turns in (rope.fast_turns, rope.slow_turns))
    if rope.truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    width = high - low or 0.001
    ramp = (torch.arange(rope.rotary_dim // 2, dtype=torch.float32) - low) / width
    return 1 - ramp.clamp(0.0, 1.0)


def _dimension_of(rope: Rope, turns: float) -> float:
    """The dimension whose frequency makes `turns` rotations over the original context."""
    wavelengths = math.log(rope.original_context / (turns * 2 * math.pi))
    return rope.rotary_dim * wavelengths / (2 * math.log(rope.theta))
