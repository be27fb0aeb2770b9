"""The same network as `model.dit`, arranged to be evaluated only: nothing here is differentiated.

Training needs every operation in a form that forward-mode derivatives go through; serving may use fused attention,
fewer passes over memory, and half precision in the large matrices. `Dit` is the truth that this is held to.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from kernels.flash_attention import flash_attention
from kernels.runtime import runs_triton
from services.dit_worker.model.dit import MODULATIONS, NORM_EPS, Block, Dit

GELU_LINEAR, GELU_CUBIC = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715


def serving_network(network: Dit, precision: torch.dtype = torch.float32) -> Dit:
    """A copy of `network` whose blocks are evaluated in `precision`; embeddings, norms and sums stay float32."""
    serving = copy.deepcopy(network).eval().requires_grad_(False)
    serving.blocks = nn.ModuleList(ServingBlock(block, precision) for block in network.blocks)
    return serving


class ServingBlock(nn.Module):
    """See `model.dit.Block`."""

    def __init__(self, block: nn.Module, precision: torch.dtype) -> None:
        super().__init__()
        assert isinstance(block, Block)
        self.heads = block.attention.heads
        self.modulation = _Linear(block.modulation, precision)
        self.qkv = _Linear(block.attention.qkv, precision)
        self.out = _Linear(block.attention.out, precision)
        self.expand = _Linear(block.expand, precision)
        self.contract = _Linear(block.contract, precision)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x: [batch, tokens, width] float32; condition: [batch, width]. Returns x's shape."""
        vectors = self.modulation(condition).view(len(x), MODULATIONS, 1, -1).float()
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = _normed(vectors).unbind(dim=1)
        x = torch.addcmul(x, gate_a, self._attention(torch.addcmul(shift_a, _normed(x), 1 + scale_a)).float())
        hidden = _gelu(self.expand(torch.addcmul(shift_m, _normed(x), 1 + scale_m)))
        return torch.addcmul(x, gate_m, self.contract(hidden).float())

    def _attention(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        split = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)  # each [batch, heads, tokens, head_dim]
        mixed = _attend(_normed(q), _normed(k), v)
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return result


class _Linear(nn.Module):
    """A linear layer in a precision of its own: what comes in is rounded to it, and what goes out is in it."""

    def __init__(self, linear: nn.Linear, precision: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().to(precision), requires_grad=False)
        self.bias = nn.Parameter(linear.bias.detach().to(precision), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nnf.linear(x.to(self.weight.dtype), self.weight, self.bias)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Our kernel where there is one, else torch's."""
    if runs_triton(q) and q.shape[-1] % 8 == 0 and 16 <= q.shape[-1] <= 256:
        mixed = flash_attention(q.contiguous(), k.contiguous(), v.contiguous())
        assert isinstance(mixed, Tensor)
        return mixed
    return nnf.scaled_dot_product_attention(q, k, v)


def _normed(x: Tensor) -> Tensor:
    """`model.dit.rms_norm`, fused where torch can."""
    return nnf.rms_norm(x, x.shape[-1:], eps=NORM_EPS)


def _gelu(x: Tensor) -> Tensor:
    """The tanh form, since (1 + tanh y) / 2 is sigmoid(2 y): half the time of torch's own on a CPU. Overwrites x."""
    inner = torch.addcmul(torch.full_like(x[..., :1], GELU_LINEAR), x, x, value=GELU_CUBIC)
    return x.mul_(inner.mul_(x).sigmoid_())
