"""Named sizes, from the shipped models to DiT-XL/2 on the latents of 256x256 pictures, and what each of them takes.

S, B, L and XL are those of Peebles and Xie, "Scalable Diffusion Models with Transformers" (arXiv 2212.09748, table 1).
"""

from dataclasses import dataclass

from services.dit_worker.model.dit import MODULATIONS
from services.dit_worker.model.topology import Topology

_IMAGENET_CLASSES = 1000


def _latent(width: int, depth: int, heads: int) -> Topology:
    """32x32 latents of 4 channels: what an AutoencoderKL makes of 256x256 pictures."""
    return Topology(32, 4, 2, width, depth, heads, _IMAGENET_CLASSES, frequencies=128)


TOPOLOGIES = {
    "digits": Topology(image_px=8, channels=1, patch_px=2, width=96, depth=4, heads=4, classes=10),
    "shapes": Topology(image_px=32, channels=3, patch_px=4, width=128, depth=4, heads=4, classes=8),
    "dit-s/2": _latent(384, 12, 6),
    "dit-b/2": _latent(768, 12, 12),
    "dit-l/2": _latent(1024, 24, 16),
    "dit-xl/2": _latent(1152, 28, 16),
}


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a topology takes: weights, and multiply-adds of one function evaluation of one image."""

    parameters: int
    multiply_adds: int

    def weight_bytes(self, bytes_per_weight: int = 2) -> int:
        """Stored or resident weights; fp16 unless said otherwise."""
        return self.parameters * bytes_per_weight


def footprint(topology: Topology) -> Footprint:
    """In closed form, without making a tensor. Multiply-adds count matrix products, as DiT's published figures do."""
    width, tokens = topology.width, topology.tokens
    hidden = topology.mlp_ratio * width
    per_token = [(width, 3 * width), (width, width), (width, hidden), (hidden, width)]
    edges = [(topology.patch_values, width), (width, topology.patch_values)]
    per_image = [(width, MODULATIONS * width)] * topology.depth + [(width, 2 * width)]
    per_image += [(2 * topology.frequencies, width), (width, width)] * 3  # time, gap, guidance
    token_linears = per_token * topology.depth + edges
    weights = sum(size * out + out for size, out in token_linears + per_image)
    tables = (topology.tokens + topology.classes + 1) * width
    attention = 2 * tokens * tokens * width * topology.depth
    products = tokens * sum(size * out for size, out in token_linears) + sum(size * out for size, out in per_image)
    return Footprint(weights + tables, products + attention)
