"""Phi-3 and Phi-4-mini (Abdin et al. 2024): Llama with fused matrices, part of a head rotated, and LongRoPE."""

from services.text_worker.model.architecture import Architecture, Attention, Layer, Mlp, Names
from services.text_worker.model.config import CheckpointError, Fields
from services.text_worker.model.families.sizes import read_sizes, read_window
from services.text_worker.model.rope import read_rope

CONTEXT = 4096
ROPES = ("default", "longrope")
NAMES = Names(qkv=("self_attn.qkv_proj",), gate_up=("mlp.gate_up_proj",))


def phi3(fields: Fields) -> Architecture:
    """See `families.load_architecture`."""
    fields.only("hidden_act", "silu")
    sizes = read_sizes(fields, context=CONTEXT)
    rope = read_rope(fields, sizes.head_dim, sizes.context, partial=True)
    if rope.kind not in ROPES:
        raise CheckpointError(f"rope_scaling.rope_type: {rope.kind!r} is not supported; supported: {ROPES}")
    attention = Attention(
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        rope=rope,
        scale=sizes.head_dim**-0.5,
        window=read_window(fields, None),
    )
    layer = Layer(attention, Mlp(sizes.mlp))
    return sizes.architecture("phi3", (layer,) * sizes.depth, eps=1e-5, names=NAMES)
