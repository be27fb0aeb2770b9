"""Gemma 2 (Riviere et al. 2024) and 3 (Kamath et al. 2025): windows that alternate with full attention, norms before
and after each branch, scores and logits capped in 2, query and key norms and two ropes in 3."""

import math
from dataclasses import replace

from services.text_worker.model.architecture import Architecture, Attention, Layer, Mlp, Names, Rope
from services.text_worker.model.config import MAX_LAYERS, Fields
from services.text_worker.model.families.sizes import Sizes, read_sizes, read_sliding, read_window
from services.text_worker.model.rope import read_rope, rope_of

WINDOW, HEAD_DIM, QUERY_SCALAR = 4096, 256, 256.0
GLOBAL_THETA, LOCAL_THETA = 1_000_000.0, 10_000.0
NAMES = Names(
    post_attention_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    post_mlp_norm="post_feedforward_layernorm",
)


def gemma2(fields: Fields) -> Architecture:
    """See `families.load_architecture`."""
    sizes = _sizes(fields, context=8192)
    rope = read_rope(fields, sizes.head_dim, sizes.context)
    attention = replace(_attention(sizes, rope), softcap=_cap(fields, "attn_logit_softcapping", 50.0))
    slides = read_sliding(fields, tuple(index % 2 == 0 for index in range(sizes.depth)))
    window = read_window(fields, WINDOW)
    local = replace(attention, window=window)
    return _architecture("gemma2", sizes, tuple(local if s else attention for s in slides), logits_cap=30.0)


def gemma3(fields: Fields) -> Architecture:
    """See `families.load_architecture`."""
    fields.only("attn_logit_softcapping", None)
    sizes = _sizes(fields, context=131_072)
    every = fields.size("sliding_window_pattern", MAX_LAYERS, default=6)
    slides = read_sliding(fields, tuple((index + 1) % every != 0 for index in range(sizes.depth)))
    far, near = _ropes(sizes)
    attention = replace(_attention(sizes, far), qk_norm=True)
    local = replace(attention, rope=near, window=read_window(fields, WINDOW))
    return _architecture("gemma3", sizes, tuple(local if s else attention for s in slides), logits_cap=None)


def _sizes(fields: Fields, *, context: int) -> Sizes:
    for name in ("hidden_activation", "hidden_act"):
        fields.only(name, "gelu_pytorch_tanh")
    fields.only("use_bidirectional_attention", False)
    return read_sizes(fields, context=context, head_dim=HEAD_DIM)


def _attention(sizes: Sizes, rope: Rope) -> Attention:
    biased = sizes.fields.flag("attention_bias")
    return Attention(
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        rope=rope,
        scale=sizes.fields.number("query_pre_attn_scalar", 1e-3, 1e6, default=QUERY_SCALAR) ** -0.5,
        qkv_bias=biased,
        out_bias=biased,
    )


def _ropes(sizes: Sizes) -> tuple[Rope, Rope]:
    """Of full and of sliding layers; transformers 5 nests them by kind of layer, 4 wrote three fields."""
    fields = sizes.fields
    nested = fields.part("rope_parameters")
    if nested is None:
        old = fields.raw.get("rope_local_base_freq")
        near = rope_of(Fields({"rope_theta": old}), sizes.head_dim, sizes.context, theta=LOCAL_THETA)
        return read_rope(fields, sizes.head_dim, sizes.context, theta=GLOBAL_THETA), near
    nested.only_holds("full_attention", "sliding_attention")
    far_part = nested.part("full_attention") or Fields({}, nested.inside)
    near_part = nested.part("sliding_attention") or Fields({}, nested.inside)
    return (
        rope_of(far_part, sizes.head_dim, sizes.context, theta=GLOBAL_THETA),
        rope_of(near_part, sizes.head_dim, sizes.context, theta=LOCAL_THETA),
    )


def _architecture(
    family: str, sizes: Sizes, attentions: tuple[Attention, ...], *, logits_cap: float | None
) -> Architecture:
    mlp = Mlp(sizes.mlp, activation="gelu_tanh")
    return sizes.architecture(
        family,
        tuple(Layer(attention, mlp, sandwich=True) for attention in attentions),
        tied=True,
        norm_offset=1.0,
        embedding_scale=math.sqrt(sizes.hidden),
        logits_softcap=_cap(sizes.fields, "final_logit_softcapping", logits_cap),
        names=NAMES,
    )


def _cap(fields: Fields, name: str, default: float | None) -> float | None:
    """Null means none, absent means the family's default."""
    return fields.maybe_number(name, 1e-3, 1e6) if name in fields.raw else default
