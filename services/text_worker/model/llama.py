"""The Llama forward pass over a KV cache, for any mix of prefill chunks and decode steps in one batch.

Formulas: RMSNorm (Zhang and Sennrich 2019), RoPE (Su et al. 2021) with halves paired as in the Hugging Face
checkpoints, grouped-query attention (Ainslie et al. 2023), SwiGLU (Shazeer 2020), llama3 frequency scaling as
published with Llama 3.1.
"""

import math
from collections.abc import Sequence as Several
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from services.text_worker.model.cache import KvCache
from services.text_worker.model.config import LlamaConfig, RopeScaling
from services.text_worker.model.weights import LayerWeights, Weights


@dataclass(frozen=True)
class Span:
    """Tokens of one sequence to run, at positions `start` and on; those before are cached."""

    slot: int
    start: int
    tokens: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True)
class _Batch:
    """The spans of one forward pass end to end, one row a token; rows of one-token spans are `single`."""

    tokens: Tensor  # [rows]
    slots: Tensor  # [rows]
    positions: Tensor  # [rows]
    last_rows: Tensor  # [spans]
    single: Tensor  # [singles] rows
    single_mask: Tensor  # [singles, 1, 1, longest single context] bool, True where attended
    chunks: tuple[tuple[int, Span], ...]  # first row and span of every longer span


class Llama:
    """A checkpoint ready to run. Not thread-safe over one cache: one engine thread owns it."""

    def __init__(self, config: LlamaConfig, weights: Weights, *, context: int | None = None) -> None:
        self.config = config
        self.weights = weights
        cos, sin = rotary_tables(config, context or config.context)
        self._cos, self._sin = cos.to(weights.norm.dtype), sin.to(weights.norm.dtype)

    @property
    def parameters(self) -> int:
        """Number of weights; a tied head is not counted again."""
        return self.weights.parameters

    @torch.inference_mode()
    def forward(self, spans: Several[Span], cache: KvCache) -> Tensor:
        """Runs every span, writes its keys and values, returns its last token's logits, fp32 [spans, vocab].

        Raises ValueError for an empty span and for one that runs over the cache's context.
        """
        for span in spans:
            if not span.tokens or span.start < 0 or span.end > cache.context:
                raise ValueError(f"span {span.start}..{span.end} is empty or over the context of {cache.context}")
        batch = _lay_out(spans)
        hidden = functional.embedding(batch.tokens, self.weights.embedding)  # [rows, hidden]
        for index, layer in enumerate(self.weights.layers):
            hidden = hidden + self._attention(index, layer, self._norm(hidden, layer.input_norm), batch, cache)
            hidden = hidden + _mlp(layer, self._norm(hidden, layer.post_norm))
        last = self._norm(hidden[batch.last_rows], self.weights.norm)
        return functional.linear(last, self.weights.head).float()

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, (self.config.hidden,), weight, self.config.rms_eps)

    def _attention(self, index: int, layer: LayerWeights, x: Tensor, batch: _Batch, cache: KvCache) -> Tensor:
        config = self.config
        heads = functional.linear(x, layer.qkv, layer.qkv_bias).view(len(x), -1, config.head_dim)
        query, key, value = torch.split(heads, [config.heads, config.kv_heads, config.kv_heads], dim=1)
        cos, sin = self._cos[batch.positions, None], self._sin[batch.positions, None]  # [rows, 1, head_dim]
        query = _rotate(query, cos, sin)  # [rows, heads, head_dim]
        cache.write(index, batch.slots, batch.positions, _rotate(key, cos, sin), value)
        mixed = torch.empty_like(query)
        if len(batch.single):
            mixed[batch.single] = _attend_singles(query[batch.single], index, batch, cache)
        for row, span in batch.chunks:
            rows = slice(row, row + len(span.tokens))
            mixed[rows] = _attend_chunk(query[rows], index, span, cache)
        return functional.linear(mixed.flatten(1), layer.out, layer.out_bias)


def rotary_tables(config: LlamaConfig, context: int) -> tuple[Tensor, Tensor]:
    """cos and sin of RoPE for positions 0 to context - 1, fp32, each [context, head_dim]."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    inverse = 1.0 / config.rope_theta**exponents  # [head_dim / 2]
    if config.rope_scaling is not None:
        inverse = _scaled(inverse, config.rope_scaling)
    angles = torch.outer(torch.arange(context).float(), inverse)
    doubled = torch.cat((angles, angles), dim=-1)
    return doubled.cos(), doubled.sin()


def _scaled(inverse: Tensor, scaling: RopeScaling) -> Tensor:
    """Frequencies divided by the factor: all, or for llama3 the long wavelengths, blended in between."""
    if scaling.kind == "linear":
        return inverse / scaling.factor
    turns = scaling.original_context * inverse / (2 * math.pi)  # rotations over the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)  # share of the unscaled frequency
    return kept * inverse + (1 - kept) * inverse / scaling.factor


def _lay_out(spans: Several[Span]) -> _Batch:
    first_rows = [0]
    for span in spans:
        first_rows.append(first_rows[-1] + len(span.tokens))
    singles = [i for i, span in enumerate(spans) if len(span.tokens) == 1]
    lengths = torch.tensor([spans[i].end for i in singles], dtype=torch.long)
    longest = int(lengths.max()) if singles else 0
    return _Batch(
        tokens=torch.tensor([token for span in spans for token in span.tokens]),
        slots=torch.tensor([span.slot for span in spans for _ in span.tokens]),
        positions=torch.tensor([position for span in spans for position in range(span.start, span.end)]),
        last_rows=torch.tensor(first_rows[1:]) - 1,
        single=torch.tensor([first_rows[i] for i in singles], dtype=torch.long),
        single_mask=(torch.arange(longest) < lengths[:, None])[:, None, None],
        chunks=tuple((first_rows[i], span) for i, span in enumerate(spans) if len(span.tokens) > 1),
    )


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _attend_singles(query: Tensor, index: int, batch: _Batch, cache: KvCache) -> Tensor:
    """Attention of one token of many sequences, ragged contexts masked: query [singles, heads, head_dim].

    The query heads that share a key head take the place of query tokens, so no key is repeated.
    """
    slots, longest = batch.slots[batch.single], batch.single_mask.shape[-1]
    keys = cache.keys[index][:, :, :longest].index_select(0, slots)  # [singles, kv_heads, longest, head_dim]
    values = cache.values[index][:, :, :longest].index_select(0, slots)  # twice as fast as indexing with `slots`
    grouped = query.view(len(query), keys.shape[1], -1, query.shape[-1])  # [singles, kv_heads, group, head_dim]
    mixed = functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=batch.single_mask)
    return mixed.flatten(1, 2)


def _attend_chunk(query: Tensor, index: int, span: Span, cache: KvCache) -> Tensor:
    """Causal attention of one span over its own context: query [tokens, heads, head_dim]."""
    keys = cache.keys[index, span.slot, None, :, : span.end]  # [1, kv_heads, end, head_dim]
    values = cache.values[index, span.slot, None, :, : span.end]
    mask = torch.ones(len(span.tokens), span.end, dtype=torch.bool).tril(span.start)
    mixed = functional.scaled_dot_product_attention(
        query.transpose(0, 1)[None], keys, values, attn_mask=mask, enable_gqa=True
    )  # [1, heads, tokens, head_dim]
    return mixed[0].transpose(0, 1)


def _mlp(layer: LayerWeights, x: Tensor) -> Tensor:
    gate, up = functional.linear(x, layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
    return functional.linear(functional.silu(gate) * up, layer.down, layer.down_bias)
