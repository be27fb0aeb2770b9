"""What a decoder is made of, as data: a family reads a checkpoint's config.json into an `Architecture`.

Nothing here computes. `forward.py` runs an architecture over a backend's primitives; see README.md for the seam.
"""

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True)
class Rope:
    """Rotary embeddings over the first `rotary_dim` elements of a head, scaled as `kind` says.

    `linear` divides all frequencies by `factor`; `llama3` the long wavelengths, blended in a band; `yarn` those that
    turn fewer than `slow_turns` times over the original context, blended up to `fast_turns`; `longrope` divides each
    by a number of its own, from `short_factors` or, where the served context is over the original one, `long_factors`.
    `amplitude` multiplies cosines and sines.
    """

    theta: float
    rotary_dim: int
    kind: Literal["default", "linear", "llama3", "yarn", "longrope"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    amplitude: float = 1.0
    slow_turns: float = 1.0
    fast_turns: float = 32.0
    truncated: bool = True
    """yarn: the band's ends are whole dimensions."""
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class Attention:
    """Causal grouped-query attention: scores = q.k * scale, then `softcap * tanh(scores / softcap)` where set."""

    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope
    scale: float
    window: int | None = None
    """A token sees itself and the `window - 1` before it; None: all before it."""
    softcap: float | None = None
    qk_norm: bool = False
    """RMSNorm over every head of queries and keys, before the rotation."""
    qkv_bias: bool = False
    out_bias: bool = False


@dataclass(frozen=True)
class Experts:
    """A mixture of `count` equal MLPs; each token goes to its `chosen` likeliest by softmax of the router's scores."""

    count: int
    chosen: int
    normalised: bool
    """The chosen experts' weights are divided by their sum."""


@dataclass(frozen=True)
class Mlp:
    """`down(activation(gate(x)) * up(x))`, or a mixture of such; `width` is one expert's."""

    width: int
    activation: Activation = "silu"
    bias: bool = False
    experts: Experts | None = None


@dataclass(frozen=True)
class Layer:
    """Attention, then MLP, each behind a norm; with `sandwich` their results are normed too before they are added."""

    attention: Attention
    mlp: Mlp
    sandwich: bool = False


@dataclass(frozen=True)
class Names:
    """Where a layer's tensors stand under `model.layers.N.`; parts of one matrix are joined in this order."""

    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    post_attention_norm: str | None = None
    """Only with `sandwich`."""
    mlp_norm: str = "post_attention_layernorm"
    post_mlp_norm: str | None = None
    """Only with `sandwich`."""
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    router: str = "mlp.gate"
    experts: str = "mlp.experts"
    expert_gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    expert_down: str = "down_proj"


@dataclass(frozen=True)
class Architecture:
    """One checkpoint's decoder; `context` in tokens, every size in elements. All layers have equal keys and values."""

    family: str
    vocab: int
    hidden: int
    layers: tuple[Layer, ...]
    context: int
    rms_eps: float
    tied_embeddings: bool
    eos_ids: frozenset[int]
    norm_offset: float = 0.0
    """Added to every norm's weight when it is loaded."""
    embedding_scale: float = 1.0
    logits_softcap: float | None = None
    names: Names = Names()

    @property
    def kv_heads(self) -> int:
        return self.layers[0].attention.kv_heads

    @property
    def head_dim(self) -> int:
        return self.layers[0].attention.head_dim
