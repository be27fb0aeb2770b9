"""From samples to images: nothing for pixel models, a convolutional VAE decoder for models of latents.

The decoder has the layout and the names of diffusers' AutoencoderKL (config.json beside
diffusion_pytorch_model.safetensors), so such a folder serves as it is: of its tensors the encoder's are left unread.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from services.dit_worker.model.tensors import CheckpointError, check_size, read_tensors, sha256_of
from services.dit_worker.model.vae import VaeDecoder, VaeError, VaeShape

VAE, VAE_CONFIG, VAE_WEIGHTS = "vae", "config.json", "diffusion_pytorch_model.safetensors"
MAX_JSON_BYTES = 64 * 1024
DTYPES = ("F16", "F32")
UNREAD = ("encoder.", "quant_conv.")

Shape = tuple[int, int, int]


class Decoder(Protocol):
    """What turns finished samples into images. Rows do not depend on one another."""

    def image_shape(self, sample_shape: Shape) -> Shape:
        """[channels, height, width] of the image that a sample of that shape becomes."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """latents: [batch, channels, height, width] float32 at t = 0; returns images, float32 about [-1, 1]."""
        ...


@dataclass(frozen=True, slots=True)
class Pixels:
    """A model of pixels: its samples are the images."""

    def image_shape(self, sample_shape: Shape) -> Shape:
        return sample_shape

    def decode(self, latents: Tensor) -> Tensor:
        return latents


@dataclass(frozen=True, slots=True)
class Latents:
    """A VAE decoder. Samples are scaled latents: z = sample / scaling + shift."""

    network: VaeDecoder

    def image_shape(self, sample_shape: Shape) -> Shape:
        shape, (_, height, width) = self.network.shape, sample_shape
        return shape.out_channels, height * shape.enlarges, width * shape.enlarges

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        shape = self.network.shape
        images: Tensor = self.network(latents / shape.scaling_factor + shape.shift_factor)
        return images


def load_decoder(folder: Path, sample_shape: Shape, digest: str) -> Latents:
    """Raises CheckpointError unless the folder holds a decoder for such samples, with weights of that sha256."""
    shape = _read_shape(folder / VAE_CONFIG)
    if shape.latent_channels != sample_shape[0]:
        problem = f"must be the model's {sample_shape[0]} channels, got {shape.latent_channels}"
        raise CheckpointError(f"{VAE}/{VAE_CONFIG} latent_channels", problem)
    with torch.device("meta"):
        network = VaeDecoder(shape)
    path, expected = folder / VAE_WEIGHTS, network.state_dict()
    check_size(path, expected, DTYPES, most_unread=1.0)
    if (found := sha256_of(path)) != digest:
        raise CheckpointError(f"{VAE}/{path.name}", f"hash is {found[:12]}..., config.json says {digest[:12]}...")
    network.load_state_dict(read_tensors(path, expected, DTYPES, UNREAD), assign=True)
    return Latents(network.float().eval().requires_grad_(False))


def _read_shape(path: Path) -> VaeShape:
    field = f"{VAE}/{path.name}"
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(field, f"is over {MAX_JSON_BYTES} bytes")
        raw: Any = json.loads(path.read_text("utf-8"))
        if not isinstance(raw, dict):
            raise CheckpointError(field, "must hold one object")
        return VaeShape.from_diffusers(raw)
    except OSError as error:
        raise CheckpointError(field, f"cannot be read: {error.strerror}") from error
    except VaeError as error:
        raise CheckpointError(field, str(error)) from error
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, CheckpointError) else CheckpointError(field, "is not JSON") from error
