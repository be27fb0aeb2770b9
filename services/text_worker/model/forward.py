"""Runs any architecture over packed rows, in the primitives of a backend. See README.md for the seam.

RMSNorm (Zhang and Sennrich 2019), grouped-query attention (Ainslie et al. 2023), gated MLPs (Shazeer 2020), mixtures
of experts (Shazeer et al. 2017).
"""

from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from services.text_worker.model.architecture import Activation, Architecture, Experts, Layer
from services.text_worker.model.weights import Gated, LayerWeights, Mixture, Weights

M = TypeVar("M")
Operand = Any
"""What goes into a linear map: a tensor, or a backend's own form of it (e.g. quantised); never looked into here."""


class Pass(Protocol[M]):
    """One forward pass over one batch of packed rows: a backend's primitives, with its cache and layout behind them.

    Rows are tokens of any sequences, end to end. None of the tensors given is changed but where it is said.
    """

    def norm(self, x: Tensor, weight: Tensor) -> Operand:
        """RMSNorm of x [rows, hidden] times weight [hidden] fp32."""

    def add_norm(self, hidden: Tensor, branch: Tensor, post: Tensor | None, weight: Tensor) -> tuple[Tensor, Operand]:
        """`hidden + branch`, the branch normed by `post` first where given, and that sum normed by `weight`.

        `hidden` and `branch` are [rows, hidden] and may be overwritten.
        """

    def linear(self, x: Operand, matrix: M) -> Tensor:
        """[rows, out]."""

    def attend(self, index: int, qkv: Tensor, weights: LayerWeights[M]) -> Operand:
        """Layer `index`'s attention: norms queries and keys where it says so, turns them, caches keys and values.

        qkv [rows, (heads + 2 * kv_heads) * head_dim]; gives [rows, heads * head_dim].
        """

    def gate(self, gate_up: Tensor, activation: Activation) -> Operand:
        """`activation(gate) * up` of gate_up [rows, 2 * width]; gives [rows, width]."""

    def mix(self, x: Operand, mixture: Mixture[M], experts: Experts, activation: Activation) -> Tensor:
        """A mixture of experts over x [rows, hidden]."""


@torch.inference_mode()
def forward(architecture: Architecture, weights: Weights[M], tokens: Tensor, wanted: Tensor, ops: Pass[M]) -> Tensor:
    """Logits [wanted, vocab] fp32 of the rows `wanted` among `tokens` [rows], whose keys and values are all cached.

    In the last layer only the wanted rows go on past attention.
    """
    hidden = _embedded(architecture, weights, tokens)  # [rows, hidden]
    x = ops.norm(hidden, weights.layers[0].input_norm)
    following = [layer.input_norm for layer in weights.layers[1:]] + [weights.norm]
    last = len(weights.layers) - 1
    for index, (layer, own) in enumerate(zip(architecture.layers, weights.layers, strict=True)):
        branch = ops.linear(ops.attend(index, ops.linear(x, own.qkv), own), own.out)
        if index == last:
            hidden, branch = hidden[wanted], branch[wanted]
        hidden, x = ops.add_norm(hidden, branch, own.post_attention_norm, own.mlp_norm)
        hidden, x = ops.add_norm(hidden, _mlp(layer, own, x, ops), own.post_mlp_norm, following[index])
    logits = ops.linear(x, weights.head).float()
    cap = architecture.logits_softcap
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _embedded(architecture: Architecture, weights: Weights[M], tokens: Tensor) -> Tensor:
    rows = torch.nn.functional.embedding(tokens, weights.embedding)
    if architecture.embedding_scale == 1.0:
        return rows
    return rows * torch.tensor(architecture.embedding_scale, dtype=rows.dtype)  # rounded first, as Gemma was trained


def _mlp(layer: Layer, weights: LayerWeights[M], x: Operand, ops: Pass[M]) -> Tensor:
    match weights.mlp:
        case Gated():
            return ops.linear(ops.gate(ops.linear(x, weights.mlp.gate_up), layer.mlp.activation), weights.mlp.down)
        case Mixture():
            assert layer.mlp.experts is not None  # the weights were read from this layer
            return ops.mix(x, weights.mlp, layer.mlp.experts, layer.mlp.activation)
