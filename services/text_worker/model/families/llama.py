"""Llama 2 and 3 (Touvron et al. 2023, Grattafiori et al. 2024): RMSNorm, rotary embeddings, grouped queries, SwiGLU."""

from services.text_worker.model.architecture import Architecture, Attention, Layer, Mlp
from services.text_worker.model.config import Fields
from services.text_worker.model.families.sizes import read_sizes
from services.text_worker.model.rope import read_rope


def llama(fields: Fields) -> Architecture:
    """See `families.load_architecture`."""
    fields.only("hidden_act", "silu")
    fields.only("sliding_window", None)
    sizes = read_sizes(fields, context=2048)
    biased = fields.flag("attention_bias")
    attention = Attention(
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        rope=read_rope(fields, sizes.head_dim, sizes.context),
        scale=sizes.head_dim**-0.5,
        qkv_bias=biased,
        out_bias=biased,
    )
    layer = Layer(attention, Mlp(sizes.mlp, bias=fields.flag("mlp_bias")))
    return sizes.architecture("llama", (layer,) * sizes.depth)
