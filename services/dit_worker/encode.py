"""Finished samples to bytes."""

import io
from enum import Enum

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

PNG_LEVEL = 1  # the budget pays for encoding: level 9 costs several times as much for a few bytes
JPEG_QUALITY = 92
WEBP_QUALITY = 90
MODES = {1: "L", 3: "RGB"}


class Format(Enum):
    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    RAW = "raw"


class EncodeError(ValueError):
    """A picture that the format cannot hold."""


def encode(image: Tensor, form: Format) -> bytes:
    """image: [channels, height, width] float in [-1, 1], values outside are clamped.

    RAW is the clamped image itself, little-endian float32 in that order. The others hold 8 bits a channel
    and need 1 or 3 channels; else EncodeError.
    """
    clamped = image.clamp(-1, 1)
    if form is Format.RAW:
        return clamped.numpy().astype("<f4").tobytes()
    picture, buffer = _picture(to_pixels(clamped)), io.BytesIO()
    if form is Format.PNG:
        picture.save(buffer, "PNG", compress_level=PNG_LEVEL)
    elif form is Format.JPEG:
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        picture.convert("RGB").save(buffer, "WEBP", quality=WEBP_QUALITY, method=0)
    return buffer.getvalue()


def to_pixels(image: Tensor) -> npt.NDArray[np.uint8]:
    """[channels, height, width] in [-1, 1] to [height, width, channels] bytes, rounded to nearest."""
    pixels: npt.NDArray[np.uint8] = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return pixels


def _picture(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    channels = pixels.shape[2]
    if channels not in MODES:
        raise EncodeError(
            f"pictures hold 1 or 3 channels, the model makes {channels}: ask for the raw tensor"
        )
    return Image.fromarray(pixels[:, :, 0] if channels == 1 else np.ascontiguousarray(pixels))
