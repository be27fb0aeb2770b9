"""The decoder half of a KL autoencoder, as diffusers' AutoencoderKL lays it out (Rombach et al., arXiv 2112.10752)."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as nnf

NORM_EPS = 1e-6
MOST_WIDTH, MOST_STAGES, MOST_LAYERS, MOST_CHANNELS = 2048, 6, 8, 64


class VaeError(ValueError):
    """A decoder that cannot be built; the message names the field and its limit."""


@dataclass(frozen=True, slots=True)
class VaeShape:
    """widths: of the stages, from the image inwards; each but one doubles the side. Raises VaeError on bad fields."""

    latent_channels: int
    out_channels: int
    widths: tuple[int, ...]
    layers: int
    groups: int
    scaling_factor: float
    shift_factor: float = 0.0
    post_quant: bool = True

    def __post_init__(self) -> None:
        _whole("latent_channels", self.latent_channels, MOST_CHANNELS)
        _whole("out_channels", self.out_channels, MOST_CHANNELS)
        _whole("layers_per_block", self.layers, MOST_LAYERS)
        _whole("norm_num_groups", self.groups, MOST_WIDTH)
        if not 1 <= len(self.widths) <= MOST_STAGES:
            raise VaeError(f"block_out_channels must be 1 to {MOST_STAGES} widths, got {len(self.widths)}")
        for width in self.widths:
            _whole("block_out_channels", width, MOST_WIDTH)
            if width % self.groups:
                raise VaeError(f"block_out_channels {width} is not a multiple of norm_num_groups {self.groups}")
        _number("scaling_factor", self.scaling_factor, above=0.0)
        _number("shift_factor", self.shift_factor, above=-100.0)
        if type(self.post_quant) is not bool:
            raise VaeError(f"use_post_quant_conv must be true or false, got {self.post_quant!r}")

    @property
    def enlarges(self) -> int:
        """Image pixels along a side for each latent one."""
        return 1 << (len(self.widths) - 1)

    @classmethod
    def from_diffusers(cls, raw: dict[str, Any]) -> "VaeShape":
        """From an AutoencoderKL's config.json; what changes no decoder tensor is not looked at."""
        widths = raw.get("block_out_channels")
        if not isinstance(widths, list):
            raise VaeError(f"block_out_channels must be a list, got {type(widths).__name__}")
        if raw.get("act_fn", "silu") != "silu":
            raise VaeError(f"act_fn must be silu, got {str(raw['act_fn'])[:40]!r}")
        shift = raw.get("shift_factor")
        return cls(
            latent_channels=raw.get("latent_channels", 4),
            out_channels=raw.get("out_channels", 3),
            widths=tuple(widths),
            layers=raw.get("layers_per_block", 1),
            groups=raw.get("norm_num_groups", 32),
            scaling_factor=raw.get("scaling_factor", 0.18215),
            shift_factor=0.0 if shift is None else shift,
            post_quant=raw.get("use_post_quant_conv", True),
        )


class Residual(nn.Module):
    def __init__(self, inward: int, outward: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inward, NORM_EPS)
        self.conv1 = nn.Conv2d(inward, outward, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outward, NORM_EPS)
        self.conv2 = nn.Conv2d(outward, outward, 3, padding=1)
        self.conv_shortcut = nn.Identity() if inward == outward else nn.Conv2d(inward, outward, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(nnf.silu(self.norm1(x)))
        mixed: Tensor = self.conv_shortcut(x) + self.conv2(nnf.silu(self.norm2(hidden)))
        return mixed


class SpatialAttention(nn.Module):
    """One head over all places of the picture."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, NORM_EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, across = x.shape
        places = self.group_norm(x).flatten(2).transpose(1, 2)  # [batch, height * across, width]
        mixed = nnf.scaled_dot_product_attention(self.to_q(places), self.to_k(places), self.to_v(places))
        back = self.to_out[0](mixed).transpose(1, 2).view(batch, width, height, across)
        mended: Tensor = x + back
        return mended


class Middle(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([SpatialAttention(width, groups)])
        self.resnets = nn.ModuleList([Residual(width, width, groups) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.resnets[1](self.attentions[0](self.resnets[0](x)))
        return mixed


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        doubled: Tensor = self.conv(nnf.interpolate(x, scale_factor=2.0, mode="nearest"))
        return doubled


class Stage(nn.Module):
    def __init__(self, inward: int, outward: int, shape: VaeShape, *, doubles: bool) -> None:
        super().__init__()
        inputs = [inward] + [outward] * shape.layers
        self.resnets = nn.ModuleList([Residual(size, outward, shape.groups) for size in inputs])
        self.upsamplers = nn.ModuleList([Upsample(outward)] if doubles else [])

    def forward(self, x: Tensor) -> Tensor:
        for part in (*self.resnets, *self.upsamplers):
            x = part(x)
        return x


class UpPath(nn.Module):
    """The decoder proper; a module of its own because AutoencoderKL names its tensors `decoder.*`."""

    def __init__(self, shape: VaeShape) -> None:
        super().__init__()
        widths = tuple(reversed(shape.widths))
        self.conv_in = nn.Conv2d(shape.latent_channels, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], shape.groups)
        pairs = zip((widths[0], *widths), widths, strict=False)
        last = len(widths) - 1
        self.up_blocks = nn.ModuleList(Stage(a, b, shape, doubles=at < last) for at, (a, b) in enumerate(pairs))
        self.conv_norm_out = nn.GroupNorm(shape.groups, widths[-1], NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], shape.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for stage in self.up_blocks:
            x = stage(x)
        image: Tensor = self.conv_out(nnf.silu(self.conv_norm_out(x)))
        return image


class VaeDecoder(nn.Module):
    """[batch, latent_channels, h, w] to [batch, out_channels, h * enlarges, w * enlarges]."""

    def __init__(self, shape: VaeShape) -> None:
        super().__init__()
        self.shape = shape
        channels = shape.latent_channels
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if shape.post_quant else nn.Identity()
        self.decoder = UpPath(shape)

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.decoder(self.post_quant_conv(z))
        return image


def _whole(name: str, value: object, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise VaeError(f"{name} must be a whole number in 1..{most}, got {value!r}"[:200])


def _number(name: str, value: object, *, above: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= above:
        raise VaeError(f"{name} must be a finite number above {above:g}, got {value!r}"[:200])
