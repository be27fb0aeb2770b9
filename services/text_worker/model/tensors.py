"""Every tensor that a checkpoint of an architecture must hold, and its shape."""

from collections.abc import Iterator

from services.text_worker.model.architecture import Architecture, Layer, Names

Shape = tuple[int, ...]


def expected_shapes(architecture: Architecture) -> dict[str, Shape]:
    """Name to shape; a tied head has none."""
    table = (architecture.vocab, architecture.hidden)
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": table, "model.norm.weight": (architecture.hidden,)}
    if not architecture.tied_embeddings:
        shapes["lm_head.weight"] = table
    for index, layer in enumerate(architecture.layers):
        shapes.update(_layer(layer_prefix(index), layer, architecture))
    return shapes


def layer_prefix(index: int) -> str:
    """What the names of a layer's tensors begin with."""
    return f"model.layers.{index}."


def gated_names(prefix: str, names: Names, expert: int | None) -> tuple[tuple[str, ...], str]:
    """The parts of gate and up, and down: of the layer's one MLP, or of one of its experts."""
    if expert is None:
        return tuple(prefix + name for name in names.gate_up), prefix + names.down
    inside = f"{prefix}{names.experts}.{expert}."
    return tuple(inside + name for name in names.expert_gate_up), inside + names.expert_down


def _layer(prefix: str, layer: Layer, architecture: Architecture) -> Iterator[tuple[str, Shape]]:
    attention, names, hidden = layer.attention, architecture.names, architecture.hidden
    query, kv = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    qkv = tuple(prefix + name for name in names.qkv)
    yield from _joined(qkv, (query, kv, kv), hidden, attention.qkv_bias)
    yield from _joined((prefix + "self_attn.o_proj",), (hidden,), query, attention.out_bias)
    norms = [names.post_attention_norm, names.post_mlp_norm] if layer.sandwich else []
    for name in ("input_layernorm", names.mlp_norm, *norms):
        yield f"{prefix}{name}.weight", (hidden,)
    for name in ("q_norm", "k_norm") if attention.qk_norm else ():
        yield f"{prefix}self_attn.{name}.weight", (attention.head_dim,)
    yield from _mlp(prefix, layer, architecture)


def _mlp(prefix: str, layer: Layer, architecture: Architecture) -> Iterator[tuple[str, Shape]]:
    mlp, hidden = layer.mlp, architecture.hidden
    experts: list[int | None] = [None] if mlp.experts is None else list(range(mlp.experts.count))
    if mlp.experts is not None:
        yield f"{prefix}{architecture.names.router}.weight", (mlp.experts.count, hidden)
    for expert in experts:
        gate_up, down = gated_names(prefix, architecture.names, expert)
        yield from _joined(gate_up, (mlp.width, mlp.width), hidden, mlp.bias)
        yield from _joined((down,), (hidden,), mlp.width, mlp.bias)


def _joined(names: tuple[str, ...], rows: tuple[int, ...], width: int, biased: bool) -> Iterator[tuple[str, Shape]]:
    """One matrix in parts of `rows` rows, or fused into one tensor that has them all."""
    for name, count in zip(names, rows if len(names) == len(rows) else (sum(rows),), strict=True):
        yield f"{name}.weight", (count, width)
        if biased:
            yield f"{name}.bias", (count,)
