"""A checkpoint on a CPU over paged keys and values: any mix of prefill chunks and decode steps in one pass."""

from collections.abc import Sequence as Several
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from headway.prefix import BLOCK_TOKENS, ElementType
from services.text_worker.backend import Span, check_spans
from services.text_worker.cpu import attention, attention_amx, rows
from services.text_worker.cpu.compiled import use_threads
from services.text_worker.cpu.linear import Packed, Rows, WeightKind, empty_rows, packer
from services.text_worker.kv.pages import Pages
from services.text_worker.model.architecture import Activation, Architecture, Experts, Rope
from services.text_worker.model.dense import route
from services.text_worker.model.forward import forward
from services.text_worker.model.rope import rotary_tables
from services.text_worker.model.weights import LayerWeights, Mixture, Weights, load_weights

_NOTHING = np.zeros(0, np.float32)


class CpuModel:
    """A checkpoint ready to run. Not thread-safe over one cache: one engine thread owns it."""

    def __init__(
        self, architecture: Architecture, weights: Weights[Packed], kind: WeightKind, *, context: int | None = None
    ) -> None:
        """`context`: the most positions that are served; None serves all that the checkpoint was trained for.

        It will run on as many threads as torch is set to now.
        """
        self.architecture, self.weights, self.kind = architecture, weights, kind
        self.context = context or architecture.context
        self._threads = torch.get_num_threads()
        ropes = {layer.attention.rope for layer in architecture.layers}
        tables = {rope: rotary_tables(rope, architecture.head_dim, self.context) for rope in ropes}
        self._tables = {rope: (cos.numpy(), sin.numpy()) for rope, (cos, sin) in tables.items()}

    @classmethod
    def load(
        cls,
        folder: Path,
        architecture: Architecture,
        kind: WeightKind = "fp32",
        *,
        context: int | None = None,
        invariant: bool = False,
    ) -> "CpuModel":
        """Reads the folder's weights, packing each matrix as it comes. Raises CheckpointError."""
        dtype = torch.bfloat16 if kind == "bf16" else torch.float32
        weights = load_weights(folder, architecture, packer(kind, invariant=invariant), dtype)
        return cls(architecture, weights, kind, context=context)

    @property
    def element(self) -> ElementType:
        """How keys and values are best kept: as precise as the weights they are made with."""
        return ElementType.FLOAT32 if self.kind == "fp32" else ElementType.BFLOAT16

    @property
    def attention(self) -> str:
        """Names attention's arithmetic, by which keys and values of equal tokens differ from another one's."""
        tiles = self.element is ElementType.BFLOAT16 and attention_amx.usable(self.architecture.head_dim)
        return f"{self.element.name.lower()}, {'tiles' if tiles else 'vectors'}"

    @property
    def parameters(self) -> int:
        """Number of weights; a tied head is not counted again."""
        return self.weights.parameters

    def forward(self, spans: Several[Span], pages: Pages) -> Tensor:
        """See `backend.Model`. The pages may be of any element: they decide how attention computes."""
        check_spans(spans, self.context)
        use_threads(self._threads)
        tiled = pages.paired and attention_amx.usable(self.architecture.head_dim)
        layout = _lay_out(spans, attention_amx.TILE_ROWS if tiled else attention.TILE_ROWS)
        ops = _CpuPass(self.architecture, self._tables, layout, pages, self.kind)
        tokens = torch.from_numpy(layout.tokens)
        return forward(self.architecture, self.weights, tokens, torch.from_numpy(layout.wanted), ops)


def _array(tensor: Tensor | None) -> np.ndarray:
    return _NOTHING if tensor is None else tensor.numpy()


@dataclass(frozen=True, slots=True)
class _Layout:
    """The spans of one pass end to end, one row a token."""

    tokens: np.ndarray  # [rows] int64
    positions: np.ndarray  # [rows] int32
    sequences: np.ndarray  # [rows] int32: each row's line of `tables`
    wanted: np.ndarray  # [wanted] int64 rows
    tables: np.ndarray  # [spans, most blocks] int32
    tiles: np.ndarray  # [tiles, 4] int32: see attention.attend


def _lay_out(spans: Several[Span], tile_rows: int) -> _Layout:
    counts = [len(span.tokens) for span in spans]
    firsts = np.concatenate(([0], np.cumsum(counts)))
    tables = np.zeros((len(spans), max(-(-span.end // BLOCK_TOKENS) for span in spans)), np.int32)
    for line, span in enumerate(spans):
        used = -(-span.end // BLOCK_TOKENS)
        tables[line, :used] = span.blocks[:used]
    starts = np.repeat([span.start for span in spans] - firsts[:-1], counts)
    return _Layout(
        tokens=np.fromiter((token for span in spans for token in span.tokens), np.int64, int(firsts[-1])),
        positions=(starts + np.arange(firsts[-1])).astype(np.int32),
        sequences=np.repeat(np.arange(len(spans), dtype=np.int32), counts),
        wanted=np.concatenate([np.arange(end - span.wanted, end) for span, end in zip(spans, firsts[1:], strict=True)]),
        tables=tables,
        tiles=_tiles(spans, firsts.tolist(), tile_rows),
    )


def _tiles(spans: Several[Span], firsts: Several[int], size: int) -> np.ndarray:
    """Rows of one sequence in groups, dealt out so that every thread's equal share of them is about as much work."""
    tiles = [
        (line, first + row, min(size, len(span.tokens) - row), span.start + row)
        for line, (span, first) in enumerate(zip(spans, firsts, strict=False))
        for row in range(0, len(span.tokens), size)
    ]
    tiles.sort(key=lambda tile: -tile[2] * (tile[3] + tile[2]))
    threads = torch.get_num_threads()
    return np.array([tile for thread in range(threads) for tile in tiles[thread::threads]], np.int32)


@dataclass(frozen=True, slots=True)
class _CpuPass:
    """See `forward.Pass`. Activations are fp32; what goes into a product is `Rows`."""

    architecture: Architecture
    rotary: dict[Rope, tuple[np.ndarray, np.ndarray]]
    layout: _Layout
    pages: Pages
    kind: WeightKind
    made: dict[tuple[str, int, int], Rows] = field(default_factory=dict)
    """By use, rows and width; written anew in every layer."""

    def norm(self, x: Tensor, weight: Tensor) -> Rows:
        made = self._rows("normed", *x.shape)
        eps = np.float32(self.architecture.rms_eps)
        rows.norm(x.float().numpy(), weight.numpy(), eps, made.plain.numpy(), made.packed, made.scales)
        return made

    def add_norm(self, hidden: Tensor, branch: Tensor, post: Tensor | None, weight: Tensor) -> tuple[Tensor, Rows]:
        hidden, made = hidden.float(), self._rows("normed", *hidden.shape)
        rows.add_norm(
            hidden.numpy(),
            branch.numpy(),
            _array(post),
            weight.numpy(),
            np.float32(self.architecture.rms_eps),
            made.plain.numpy(),
            made.packed,
            made.scales,
        )
        return hidden, made

    def linear(self, x: Rows, matrix: Packed) -> Tensor:
        return matrix.product(x)

    def attend(self, index: int, qkv: Tensor, weights: LayerWeights[Packed]) -> Rows:
        layer, at = self.architecture.layers[index].attention, self.layout
        keys, values = self.pages.keys[index], self.pages.values[index]
        cos, sin = self.rotary[layer.rope]
        query_norm, key_norm = _array(weights.query_norm), _array(weights.key_norm)
        heads, eps = qkv.numpy(), np.float32(self.architecture.rms_eps)
        attention.turn_and_store(
            heads, layer.heads, at.positions, at.sequences, cos, sin, query_norm, key_norm, eps, at.tables, keys, values
        )
        made = self._rows("attended", len(heads), layer.heads * layer.head_dim)
        scale, softcap = np.float32(layer.scale), np.float32(layer.softcap or 0.0)
        out = made.plain.numpy()
        tiled = self.pages.paired and attention_amx.usable(layer.head_dim)
        attend = attention_amx.attend if tiled else attention.attend
        attend(heads, out, keys, values, at.tables, at.tiles, layer.heads, scale, layer.window or 0, softcap)
        if made.packed.size:
            rows.pack_rows(out, made.packed, made.scales)
        return made

    def gate(self, gate_up: Tensor, activation: Activation) -> Rows:
        made = self._rows("gated", len(gate_up), gate_up.shape[1] // 2)
        rows.gate(gate_up.numpy(), activation != "silu", made.plain.numpy(), made.packed, made.scales)
        return made

    def mix(self, x: Rows, mixture: Mixture[Packed], experts: Experts, activation: Activation) -> Tensor:
        shares, chosen = route(self.linear(x, mixture.router), experts)
        mixed = torch.zeros_like(x.plain)
        for expert in torch.unique(chosen).tolist():
            lines, places = torch.where(chosen == expert)
            own = mixture.experts[expert]
            answer = self.linear(self.gate(self.linear(x.take(lines), own.gate_up), activation), own.down)
            mixed.index_add_(0, lines, answer * shares[lines, places, None])
        return mixed

    def _rows(self, use: str, count: int, width: int) -> Rows:
        """Memory for rows of one use: the same in every layer, because the next product is all that reads them."""
        known = self.made.get((use, count, width))
        if known is None:
            known = self.made[use, count, width] = empty_rows(self.kind, count, width)
        return known
