"""A checkpoint on a GPU over paged keys and values: any mix of prefill chunks and decode steps in one pass.

Products and what lies between them are torch's, attention is `kernels.paged_attention`, which serves prefill chunks and
decode steps alike. Steps of few rows run as graphs: see `steps`.
"""

from collections.abc import Sequence as Several
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.paged_attention import paged_attention
from services.text_worker.backend import Span, check_spans
from services.text_worker.cuda.layout import Layout, lay_out
from services.text_worker.cuda.pages import CudaPages
from services.text_worker.cuda.steps import FixedSteps
from services.text_worker.model.architecture import Architecture
from services.text_worker.model.dense import TorchPass, whole_tables
from services.text_worker.model.forward import forward
from services.text_worker.model.weights import LayerWeights, Matrix, Weights, load_weights


class CudaModel:
    """See `backend.Model`. Runs wherever its tensors are, on a CPU too: there `paged_attention` is plain torch."""

    def __init__(
        self, architecture: Architecture, weights: Weights[Matrix], *, context: int, device: torch.device
    ) -> None:
        """`weights` lie on `device`. `context`: the most positions that are served; `why_not` found no reason."""
        self.architecture, self.weights, self.context, self.device = architecture, weights, context, device
        self._tables = moved(whole_tables(architecture, context, weights.embedding.dtype), device)
        self._steps: FixedSteps | None = None

    @classmethod
    def load(
        cls, folder: Path, architecture: Architecture, dtype: torch.dtype, *, context: int, device: torch.device
    ) -> "CudaModel":
        """Reads the folder's weights, each matrix moved as it comes. Raises CheckpointError."""
        weights = load_weights(folder, architecture, lambda matrix: moved(matrix, device), dtype)
        if architecture.tied_embeddings:  # one copy on the device serves both
            weights = replace(weights, embedding=weights.head.weight)
        return cls(architecture, moved(weights, device), context=context, device=device)

    @property
    def parameters(self) -> int:
        """Number of weights; a tied head is not counted again."""
        return self.weights.parameters

    def prepare(self, pages: CudaPages, most_rows: int) -> None:
        """From now on steps of up to `most_rows` tokens over `pages` run in fixed layouts; on a GPU takes seconds.

        Experts are chosen on the host, so a mixture of them cannot be captured and stays as it is.
        """
        if all(layer.mlp.experts is None for layer in self.architecture.layers):
            self._steps = FixedSteps(lambda layout: self._pass(layout, pages), pages, self.context, most_rows)

    def forward(self, spans: Several[Span], pages: CudaPages) -> Tensor:
        """See `backend.Model`."""
        check_spans(spans, self.context)
        if self._steps is not None and self._steps.serve(spans, pages):
            return self._steps.run(spans).cpu()
        return self._pass(lay_out(spans, pages.blocks, self.device), pages).cpu()

    def _pass(self, layout: Layout, pages: CudaPages) -> Tensor:
        """The wanted rows' logits, fp32 [wanted, vocab]; waits for nothing."""
        at = layout.positions
        turned = {rope: (cos[at, None], sin[at, None]) for rope, (cos, sin) in self._tables.items()}
        ops = _PagedPass(self.architecture, turned, layout, pages)
        return forward(self.architecture, self.weights, layout.tokens, layout.wanted, ops)


@dataclass(frozen=True)
class _PagedPass(TorchPass):
    """See `forward.Pass`."""

    layout: Layout
    pages: CudaPages

    def attend(self, index: int, qkv: Tensor, weights: LayerWeights[Matrix]) -> Tensor:
        query, key, value = self.turn(index, qkv, weights)
        keys, values = self.pages.keys[index], self.pages.values[index]  # [blocks, tokens, kv_heads, head_dim]
        keys.flatten(0, 1).index_copy_(0, self.layout.slots, key)
        values.flatten(0, 1).index_copy_(0, self.layout.slots, value)
        scale = self.architecture.layers[index].attention.scale
        mixed = paged_attention(query, keys, values, self.layout.batch, scale=scale)
        assert isinstance(mixed, Tensor)  # a pair only where it is asked for
        return mixed.flatten(1)  # [rows, heads * head_dim]


def why_not(architecture: Architecture, context: int) -> str | None:
    """What of a model the kernels do not serve; None where they serve it."""
    if architecture.head_dim % 8 or not 16 <= architecture.head_dim <= 256:
        return f"heads of {architecture.head_dim} are not served on a GPU: a multiple of 8 from 16 to 256 is"
    for layer in architecture.layers:
        if layer.attention.softcap is not None:
            return "attention with a softcap is not served on a GPU"
        if layer.attention.window is not None and layer.attention.window < context:
            return f"a window of {layer.attention.window} tokens in a context of {context} is not served on a GPU"
    return None


def moved(value: Any, device: torch.device) -> Any:
    """A tensor, or data made of tensors, on `device`."""
    match value:
        case Tensor():
            return value.to(device)
        case tuple():
            return tuple(moved(each, device) for each in value)
        case dict():
            return {key: moved(each, device) for key, each in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{part.name: moved(getattr(value, part.name), device) for part in fields(value)})
    return value
