"""Qwen2 (Yang et al. 2024): biases on queries, keys and values. Qwen3 (2025): norms on them; Qwen3-MoE: experts."""

from dataclasses import replace

from services.text_worker.model.architecture import Architecture, Attention, Experts, Layer, Mlp
from services.text_worker.model.config import MAX_LAYERS, CheckpointError, Fields
from services.text_worker.model.families.sizes import MAX_MLP, Sizes, read_sizes, read_sliding, read_window
from services.text_worker.model.rope import read_rope

CONTEXT = 32_768
WINDOW, FIRST_WINDOW_LAYER = 4096, 28


def qwen2(fields: Fields) -> Architecture:
    """See `families.load_architecture`."""
    fields.only("hidden_act", "silu")
    sizes = read_sizes(fields, context=CONTEXT)
    attention = replace(_attention(sizes), qkv_bias=True)
    return sizes.architecture("qwen2", _layers(sizes, attention, Mlp(sizes.mlp)))


def qwen3(fields: Fields) -> Architecture:
    """See `families.load_architecture`."""
    fields.only("hidden_act", "silu")
    sizes = read_sizes(fields, context=CONTEXT, head_dim=128)
    return sizes.architecture("qwen3", _layers(sizes, _normed_attention(sizes), Mlp(sizes.mlp)))


def qwen3_moe(fields: Fields) -> Architecture:
    """See `families.load_architecture`."""
    fields.only("hidden_act", "silu")
    fields.only("use_sliding_window", False)
    sizes = read_sizes(fields, context=CONTEXT)
    mixture, plain = _mixture(fields), Mlp(sizes.mlp)
    every = fields.size("decoder_sparse_step", MAX_LAYERS, default=1)
    dense = fields.indices("mlp_only_layers", sizes.depth)
    attention = _normed_attention(sizes)
    layers = tuple(
        Layer(attention, plain if index in dense or (index + 1) % every else mixture) for index in range(sizes.depth)
    )
    return sizes.architecture("qwen3_moe", layers)


def _mixture(fields: Fields) -> Mlp:
    count = fields.size("num_experts", 1024, default=fields.size("num_local_experts", 1024, default=128))
    chosen = fields.size("num_experts_per_tok", 1024, default=8)
    if chosen > count:
        raise CheckpointError(f"num_experts_per_tok: {chosen} is over num_experts {count}")
    experts = Experts(count, chosen, normalised=fields.flag("norm_topk_prob"))
    return Mlp(fields.size("moe_intermediate_size", MAX_MLP, default=768), experts=experts)


def _attention(sizes: Sizes) -> Attention:
    return Attention(
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        rope=read_rope(sizes.fields, sizes.head_dim, sizes.context),
        scale=sizes.head_dim**-0.5,
    )


def _normed_attention(sizes: Sizes) -> Attention:
    biased = sizes.fields.flag("attention_bias")
    return replace(_attention(sizes), qk_norm=True, qkv_bias=biased, out_bias=biased)


def _layers(sizes: Sizes, attention: Attention, mlp: Mlp) -> tuple[Layer, ...]:
    """With `use_sliding_window` the layers from `max_window_layers` on slide, or those that `layer_types` names."""
    fields = sizes.fields
    window = read_window(fields, WINDOW) if fields.flag("use_sliding_window") else None
    first = fields.number("max_window_layers", 0, MAX_LAYERS, default=FIRST_WINDOW_LAYER)
    sliding = read_sliding(fields, tuple(window is not None and index >= first for index in range(sizes.depth)))
    return tuple(Layer(replace(attention, window=window if slides else None), mlp) for slides in sliding)
