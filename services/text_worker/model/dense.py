"""The plain backend: fp32 or bf16 torch over a dense cache, one slot a sequence. The truth that faster ones meet."""

from collections.abc import Sequence as Several
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from services.text_worker.model.architecture import Activation, Architecture, Attention, Experts, Rope
from services.text_worker.model.cache import KvCache
from services.text_worker.model.forward import forward
from services.text_worker.model.rope import rotary_tables
from services.text_worker.model.weights import LayerWeights, Matrix, Mixture, Weights, load_weights


@dataclass(frozen=True)
class Span:
    """Tokens of one sequence to run, at positions `start` and on; those before are cached."""

    slot: int
    start: int
    tokens: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


def as_it_is(matrix: Matrix) -> Matrix:
    """This backend packs nothing."""
    return matrix


class DenseModel:
    """A checkpoint ready to run. Not thread-safe over one cache: one engine thread owns it."""

    def __init__(self, architecture: Architecture, weights: Weights[Matrix], *, context: int | None = None) -> None:
        """`context`: the most positions that are served; None serves all that the checkpoint was trained for."""
        self.architecture, self.weights = architecture, weights
        dtype, served = weights.embedding.dtype, context or architecture.context
        self._tables = whole_tables(architecture, served, dtype)

    @classmethod
    def load(
        cls, folder: Path, architecture: Architecture, dtype: torch.dtype = torch.float32, *, context: int | None = None
    ) -> "DenseModel":
        """Reads the folder's weights. Raises CheckpointError."""
        return cls(architecture, load_weights(folder, architecture, as_it_is, dtype), context=context)

    @property
    def parameters(self) -> int:
        """Number of weights; a tied head is not counted again."""
        return self.weights.parameters

    def forward(self, spans: Several[Span], cache: KvCache) -> Tensor:
        """Runs every span, writes its keys and values, returns its last token's logits, fp32 [spans, vocab].

        Raises ValueError for an empty span and for one that runs over the cache's context.
        """
        for span in spans:
            if not span.tokens or span.start < 0 or span.end > cache.context:
                raise ValueError(f"span {span.start}..{span.end} is empty or over the context of {cache.context}")
        batch = _lay_out(spans)
        places = batch.positions
        turned = {rope: (cos[places, None], sin[places, None]) for rope, (cos, sin) in self._tables.items()}
        ops = _DensePass(self.architecture, turned, batch, cache)
        return forward(self.architecture, self.weights, batch.tokens, batch.last_rows, ops)


@dataclass(frozen=True)
class _Batch:
    """The spans of one forward pass end to end, one row a token; rows of one-token spans are `single`."""

    tokens: Tensor  # [rows]
    slots: Tensor  # [rows]
    positions: Tensor  # [rows]
    last_rows: Tensor  # [spans]
    single: Tensor  # [singles] rows
    single_ends: Tensor  # [singles] tokens of context, themselves included
    chunks: tuple[tuple[int, Span], ...]  # first row and span of every longer span


@dataclass(frozen=True)
class TorchPass:
    """All of `forward.Pass` but attention, in plain torch on the device that the tensors are on."""

    architecture: Architecture
    turned: dict[Rope, tuple[Tensor, Tensor]]
    """cos and sin of every row, each [rows, 1, head_dim], by rope."""

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return _normed(x, weight, self.architecture.rms_eps)

    def add_norm(self, hidden: Tensor, branch: Tensor, post: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        hidden = hidden + (branch if post is None else self.norm(branch, post))
        return hidden, self.norm(hidden, weight)

    def linear(self, x: Tensor, matrix: Matrix) -> Tensor:
        return functional.linear(x, matrix.weight, matrix.bias)

    def turn(self, index: int, qkv: Tensor, weights: LayerWeights[Matrix]) -> tuple[Tensor, Tensor, Tensor]:
        """Layer `index`'s queries, keys and values, each [rows, heads of its kind, head_dim], normed and turned."""
        attention = self.architecture.layers[index].attention
        heads = qkv.view(len(qkv), -1, attention.head_dim)
        query, key, value = torch.split(heads, [attention.heads, attention.kv_heads, attention.kv_heads], dim=1)
        if weights.query_norm is not None and weights.key_norm is not None:
            query, key = self.norm(query, weights.query_norm), self.norm(key, weights.key_norm)
        cos, sin = self.turned[attention.rope]
        return _rotate(query, cos, sin), _rotate(key, cos, sin), value

    def gate(self, gate_up: Tensor, activation: Activation) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return (functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")) * up

    def mix(self, x: Tensor, mixture: Mixture[Matrix], experts: Experts, activation: Activation) -> Tensor:
        shares, chosen = route(self.linear(x, mixture.router), experts)
        mixed = torch.zeros_like(x)
        for expert in sorted(set(chosen.flatten().tolist())):
            rows, places = torch.where(chosen == expert)
            own = mixture.experts[expert]
            answer = self.linear(self.gate(self.linear(x[rows], own.gate_up), activation), own.down)
            mixed.index_add_(0, rows, answer * shares[rows, places, None].to(answer.dtype))
        return mixed


@dataclass(frozen=True)
class _DensePass(TorchPass):
    """See `forward.Pass`."""

    batch: _Batch
    cache: KvCache

    def attend(self, index: int, qkv: Tensor, weights: LayerWeights[Matrix]) -> Tensor:
        attention, batch = self.architecture.layers[index].attention, self.batch
        query, key, value = self.turn(index, qkv, weights)
        self.cache.write(index, batch.slots, batch.positions, key, value)
        mixed = torch.empty_like(query)
        if len(batch.single):
            mixed[batch.single] = _attend_singles(query[batch.single], index, attention, batch, self.cache)
        for row, span in batch.chunks:
            rows = slice(row, row + len(span.tokens))
            mixed[rows] = _attend_chunk(query[rows], index, attention, span, self.cache)
        return mixed.flatten(1)


def route(scores: Tensor, experts: Experts) -> tuple[Tensor, Tensor]:
    """Each row's experts and their shares of its answer, each [rows, chosen]; scores [rows, experts]; shares fp32."""
    shares, chosen = scores.float().softmax(dim=-1).topk(experts.chosen, dim=-1)
    return (shares / shares.sum(dim=-1, keepdim=True) if experts.normalised else shares), chosen


def whole_tables(architecture: Architecture, context: int, dtype: torch.dtype) -> dict[Rope, tuple[Tensor, Tensor]]:
    """cos and sin by rope and position, each [context, head_dim]: both halves of a head beside each other."""
    ropes = dict.fromkeys(layer.attention.rope for layer in architecture.layers)
    tables = {rope: rotary_tables(rope, architecture.head_dim, context) for rope in ropes}
    return {
        rope: (torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((sin, sin), dim=-1).to(dtype))
        for rope, (cos, sin) in tables.items()
    }


def _lay_out(spans: Several[Span]) -> _Batch:
    first_rows = [0]
    for span in spans:
        first_rows.append(first_rows[-1] + len(span.tokens))
    singles = [i for i, span in enumerate(spans) if len(span.tokens) == 1]
    return _Batch(
        tokens=torch.tensor([token for span in spans for token in span.tokens]),
        slots=torch.tensor([span.slot for span in spans for _ in span.tokens]),
        positions=torch.tensor([position for span in spans for position in range(span.start, span.end)]),
        last_rows=torch.tensor(first_rows[1:]) - 1,
        single=torch.tensor([first_rows[i] for i in singles], dtype=torch.long),
        single_ends=torch.tensor([spans[i].end for i in singles], dtype=torch.long),
        chunks=tuple((first_rows[i], span) for i, span in enumerate(spans) if len(span.tokens) > 1),
    )


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm in fp32, given back in x's dtype."""
    return functional.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _attend_singles(query: Tensor, index: int, attention: Attention, batch: _Batch, cache: KvCache) -> Tensor:
    """Attention of one token of many sequences, ragged contexts masked: query [singles, heads, head_dim].

    The query heads that share a key head take the place of query tokens, so no key is repeated.
    """
    slots, longest = batch.slots[batch.single], int(batch.single_ends.max())
    keys = cache.keys[index][:, :, :longest].index_select(0, slots)  # [singles, kv_heads, longest, head_dim]
    values = cache.values[index][:, :, :longest].index_select(0, slots)  # twice as fast as indexing with `slots`
    grouped = query.view(len(query), keys.shape[1], -1, query.shape[-1])  # [singles, kv_heads, group, head_dim]
    seen = _seen(batch.single_ends[:, None] - 1, longest, attention.window)  # [singles, longest]
    return _mixed(grouped, keys, values, seen[:, None, None], attention).flatten(1, 2)


def _attend_chunk(query: Tensor, index: int, attention: Attention, span: Span, cache: KvCache) -> Tensor:
    """Causal attention of one span over its own context: query [tokens, heads, head_dim]."""
    keys = cache.keys[index, span.slot, :, None, : span.end]  # [kv_heads, 1, end, head_dim]
    values = cache.values[index, span.slot, :, None, : span.end]
    grouped = query.view(len(query), keys.shape[0], -1, query.shape[-1]).permute(1, 2, 0, 3)
    seen = _seen(torch.arange(span.start, span.end)[:, None], span.end, attention.window)  # [tokens, end]
    group = (-1, grouped.shape[1], -1, -1)
    mixed = _mixed(grouped, keys.expand(group), values.expand(group), seen, attention)
    return mixed.permute(2, 0, 1, 3).flatten(1, 2)  # [tokens, heads, head_dim]


def _seen(positions: Tensor, keys: int, window: int | None) -> Tensor:
    """True where a token at `positions` [.., 1] sees the key at each of `keys` places."""
    places = torch.arange(keys)
    seen = places <= positions
    return seen if window is None else seen & (places > positions - window)


def _mixed(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor, attention: Attention) -> Tensor:
    """Attention over the last two dimensions; `seen` is True where a key counts."""
    if attention.softcap is None:
        return functional.scaled_dot_product_attention(query, keys, values, attn_mask=seen, scale=attention.scale)
    scores = query @ keys.transpose(-1, -2) * attention.scale
    scores = (scores / attention.softcap).tanh() * attention.softcap
    return scores.masked_fill(~seen, float("-inf")).float().softmax(dim=-1).to(query.dtype) @ values
