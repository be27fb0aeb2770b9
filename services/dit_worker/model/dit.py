"""The semi-Lipschitz diffusion transformer of Terminal Velocity Matching (arXiv 2511.19797).

The objective differentiates the network by its end time, so everything the time reaches must be Lipschitz:
RMSNorm without affine parts stands where a DiT has LayerNorm, on queries and keys, and on every modulation
vector; linears start with a bounded spectral norm.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from services.dit_worker.model.topology import Topology

NORM_EPS = 1e-6
MODULATIONS = 6
# Time is embedded with slow waves only: the derivative by s grows with the highest frequency.
LOWEST_HZ, HIGHEST_HZ = 0.25, 8.0


def rms_norm(x: Tensor) -> Tensor:
    """x over its root mean square along the last axis. Spelt out: the JVP goes through it in forward mode."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + NORM_EPS)


def spectral_init(linear: nn.Linear) -> None:
    """Gaussian weights scaled to the spectral norm sqrt(out / in), at which activations keep their size."""
    nn.init.normal_(linear.weight)
    target = math.sqrt(linear.out_features / linear.in_features)
    with torch.no_grad():
        linear.weight.mul_(target / torch.linalg.matrix_norm(linear.weight, ord=2))
    nn.init.zeros_(linear.bias)


class ScalarEmbedding(nn.Module):
    """[batch] scalars in [0, 1] to [batch, width]."""

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        self.frequencies = topology.frequencies
        self.inner = nn.Linear(2 * topology.frequencies, topology.width)
        self.outer = nn.Linear(topology.width, topology.width)

    def forward(self, value: Tensor) -> Tensor:
        low, high = math.log10(LOWEST_HZ), math.log10(HIGHEST_HZ)
        hz = torch.logspace(low, high, self.frequencies, dtype=value.dtype, device=value.device)
        phase = 2 * math.pi * value[:, None] * hz  # [batch, frequencies]
        waves = torch.cat([phase.cos(), phase.sin()], dim=-1)
        embedded: Tensor = self.outer(nnf.silu(self.inner(waves)))
        return embedded


class Attention(nn.Module):
    def __init__(self, topology: Topology) -> None:
        super().__init__()
        self.heads = topology.heads
        self.qkv = nn.Linear(topology.width, 3 * topology.width)
        self.out = nn.Linear(topology.width, topology.width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        split = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)  # each [batch, heads, tokens, head_dim]
        # Softmax attention by hand: the fused kernels have no forward-mode derivative.
        scores = rms_norm(q) @ rms_norm(k).transpose(-1, -2) / math.sqrt(q.shape[-1])
        mixed = scores.softmax(dim=-1) @ v  # [batch, heads, tokens, head_dim]
        projected: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return projected


class Block(nn.Module):
    def __init__(self, topology: Topology) -> None:
        super().__init__()
        width = topology.width
        self.modulation = nn.Linear(width, MODULATIONS * width)
        self.attention = Attention(topology)
        self.expand = nn.Linear(width, topology.mlp_ratio * width)
        self.contract = nn.Linear(topology.mlp_ratio * width, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x: [batch, tokens, width]; condition: [batch, width]."""
        vectors = self.modulation(condition).view(len(x), MODULATIONS, 1, -1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = rms_norm(vectors).unbind(dim=1)
        x = x + gate_a * self.attention(rms_norm(x) * (1 + scale_a) + shift_a)
        hidden = nnf.gelu(self.expand(rms_norm(x) * (1 + scale_m) + shift_m), approximate="tanh")
        mixed: Tensor = x + gate_m * self.contract(hidden)
        return mixed


class Dit(nn.Module):
    """A FlowMap: F(x_t, t, t - s, class, 1 / guidance)."""

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        width = topology.width
        self.topology = topology
        self.patches = nn.Linear(topology.patch_values, width)
        self.positions = nn.Parameter(torch.empty(topology.tokens, width).normal_(std=0.5))
        self.time = ScalarEmbedding(topology)
        self.gap = ScalarEmbedding(topology)
        self.guidance = ScalarEmbedding(topology)
        self.classes = nn.Embedding(topology.classes + 1, width)
        self.blocks = nn.ModuleList(Block(topology) for _ in range(topology.depth))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.final = nn.Linear(width, topology.patch_values)
        self._initialise()

    @classmethod
    def empty(cls, topology: Topology) -> "Dit":
        """Shapes without storage, for a checkpoint to fill; a hostile topology costs no memory."""
        with torch.device("meta"):
            return cls(topology)

    def _initialise(self) -> None:
        embeddings = {id(m) for e in (self.time, self.gap, self.guidance) for m in e.modules()}
        for module in self.modules():
            if isinstance(module, nn.Linear) and id(module) not in embeddings:
                spectral_init(module)
        nn.init.zeros_(self.final.weight)

    def forward(self, x: Tensor, t: Tensor, gap: Tensor, labels: Tensor, inverse_guidance: Tensor) -> Tensor:
        """x: [batch, channels, height, width]; the rest [batch]. Returns F, shaped as x."""
        tokens = self.patches(self._to_patches(x)) + self.positions  # [batch, tokens, width]
        scalars = self.time(t) + self.gap(gap) + self.guidance(inverse_guidance)
        condition = nnf.silu(rms_norm(scalars + self.classes(labels)))  # [batch, width]
        for block in self.blocks:
            tokens = block(tokens, condition)
        vectors = self.final_modulation(condition).view(len(x), 2, 1, -1)
        shift, scale = rms_norm(vectors).unbind(dim=1)
        return self._to_image(self.final(rms_norm(tokens) * (1 + scale) + shift))

    def average_velocity(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor, guidance: Tensor) -> Tensor:
        """See FlowMap.average_velocity."""
        velocity: Tensor = self(x, t, t - s, labels, guidance.reciprocal())
        return velocity

    def _to_patches(self, x: Tensor) -> Tensor:
        side, patch = self.topology.image_px // self.topology.patch_px, self.topology.patch_px
        cut = x.reshape(len(x), self.topology.channels, side, patch, side, patch)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(len(x), side * side, -1)  # [batch, tokens, patch_values]

    def _to_image(self, patches: Tensor) -> Tensor:
        side, patch = self.topology.image_px // self.topology.patch_px, self.topology.patch_px
        cut = patches.reshape(len(patches), side, side, self.topology.channels, patch, patch)
        return cut.permute(0, 3, 1, 4, 2, 5).reshape(len(patches), *self.topology.image_shape)
