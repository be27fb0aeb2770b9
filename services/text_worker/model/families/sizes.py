"""What every family's config.json holds."""

from dataclasses import dataclass
from typing import Any

from services.text_worker.model.architecture import Architecture, Layer
from services.text_worker.model.config import MAX_CONTEXT, MAX_LAYERS, CheckpointError, Fields

MAX_MLP = 1_048_576
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Sizes:
    """The sizes in elements, `context` in tokens."""

    fields: Fields
    vocab: int
    hidden: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    context: int

    def architecture(
        self, family: str, layers: tuple[Layer, ...], *, eps: float = 1e-6, tied: bool = False, **options: Any
    ) -> Architecture:
        """With what all families name alike; `eps` and `tied` are the family's defaults. Raises CheckpointError."""
        return Architecture(
            family=family,
            vocab=self.vocab,
            hidden=self.hidden,
            layers=layers,
            context=self.context,
            rms_eps=self.fields.number("rms_norm_eps", 0.0, 1.0, default=eps),
            tied_embeddings=self.fields.flag("tie_word_embeddings", default=tied),
            eos_ids=self.fields.indices("eos_token_id", self.vocab),
            **options,
        )


def read_sizes(fields: Fields, *, context: int, head_dim: int | None = None) -> Sizes:
    """The sizes, with the family's defaults for `context` and `head_dim` (None: hidden / heads).

    Refuses what no family serves: quantised weights. Raises CheckpointError.
    """
    fields.only("quantization_config", None)
    heads = fields.size("num_attention_heads", 1024)
    hidden = fields.size("hidden_size", 65_536)
    kv_heads = fields.size("num_key_value_heads", heads, default=heads)
    if heads % kv_heads:
        raise CheckpointError(f"num_key_value_heads: {kv_heads} does not divide num_attention_heads {heads}")
    if head_dim is None and not fields.has("head_dim") and hidden % heads:
        raise CheckpointError(f"num_attention_heads: {heads} does not divide hidden_size {hidden}")
    width = fields.size("head_dim", 1024, default=head_dim or hidden // heads)
    if width % 2:
        raise CheckpointError(f"head_dim: {width} is odd, rotary embeddings need an even one")
    return Sizes(
        fields=fields,
        vocab=fields.size("vocab_size", 4_194_304),
        hidden=hidden,
        depth=fields.size("num_hidden_layers", MAX_LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width,
        mlp=fields.size("intermediate_size", MAX_MLP),
        context=fields.size("max_position_embeddings", MAX_CONTEXT, default=context),
    )


def read_window(fields: Fields, default: int | None) -> int | None:
    """`sliding_window` in tokens: null means none, absent means the family's default. Raises CheckpointError."""
    if "sliding_window" not in fields.raw:
        return default
    return fields.size("sliding_window", MAX_CONTEXT) if fields.has("sliding_window") else None


def read_sliding(fields: Fields, default: tuple[bool, ...]) -> tuple[bool, ...]:
    """`layer_types`, True for layers that slide; absent means `default`. Raises CheckpointError."""
    kinds = fields.raw.get("layer_types")
    if kinds is None:
        return default
    if not isinstance(kinds, list) or len(kinds) != len(default):
        raise fields.bad("layer_types", f"must be a list of {len(default)} names", kinds)
    for kind in kinds:
        if kind not in (FULL, SLIDING):
            raise CheckpointError(f"layer_types: {kind!r:.80} is not supported, only {FULL} and {SLIDING}")
    return tuple(kind == SLIDING for kind in kinds)
