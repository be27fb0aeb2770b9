"""Mistral 7B (Jiang et al. 2023): Llama with a sliding window, and Mixtral (2024), whose MLPs are expert mixtures."""

from services.text_worker.model.architecture import Architecture, Attention, Experts, Layer, Mlp, Names
from services.text_worker.model.config import CheckpointError, Fields
from services.text_worker.model.families.sizes import Sizes, read_sizes, read_window
from services.text_worker.model.rope import read_rope

CONTEXT = 131_072
MIXTRAL_NAMES = Names(
    router="block_sparse_moe.gate",
    experts="block_sparse_moe.experts",
    expert_gate_up=("w1", "w3"),
    expert_down="w2",
)


def mistral(fields: Fields) -> Architecture:
    """See `families.load_architecture`."""
    fields.only("hidden_act", "silu")
    sizes = read_sizes(fields, context=CONTEXT)
    layer = Layer(_attention(sizes, window=4096), Mlp(sizes.mlp))
    return sizes.architecture("mistral", (layer,) * sizes.depth)


def mixtral(fields: Fields) -> Architecture:
    """See `families.load_architecture`."""
    fields.only("hidden_act", "silu")
    sizes = read_sizes(fields, context=CONTEXT)
    count = fields.size("num_local_experts", 1024, default=8)
    chosen = fields.size("num_experts_per_tok", 1024, default=2)
    if chosen > count:
        raise CheckpointError(f"num_experts_per_tok: {chosen} is over num_local_experts {count}")
    mlp = Mlp(sizes.mlp, experts=Experts(count, chosen, normalised=True))
    layer = Layer(_attention(sizes, window=None, theta=1e6), mlp)
    return sizes.architecture("mixtral", (layer,) * sizes.depth, eps=1e-5, names=MIXTRAL_NAMES)


def _attention(sizes: Sizes, *, window: int | None, theta: float = 10_000.0) -> Attention:
    return Attention(
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        rope=read_rope(sizes.fields, sizes.head_dim, sizes.context, theta=theta),
        scale=sizes.head_dim**-0.5,
        window=read_window(sizes.fields, window),
    )
