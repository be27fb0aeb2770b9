"""Finished samples to bytes."""

import io
from enum import Enum

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from services.dit_worker.model.decoder import Decoder

PNG_LEVEL = 1  # the budget pays for encoding: level 9 costs several times as much for a few bytes
DEFAULT_QUALITY = 90
DECODED_AT_ONCE = 16
MODES = {1: "L", 3: "RGB"}


class Format(Enum):
    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    RAW = "raw"
    FLOAT32 = "float32"


class EncodeError(ValueError):
    """A picture that the format cannot hold."""


def encode(image: Tensor, form: Format, quality: int = DEFAULT_QUALITY) -> bytes:
    """One image: see `encode_all`; [channels, height, width]."""
    return encode_all(image[None], form, quality)[0]


def encode_all(images: Tensor, form: Format, quality: int = DEFAULT_QUALITY) -> list[bytes]:
    """images: [n, channels, height, width] float in [-1, 1] on any device, values outside are clamped.

    RAW is [height, width, channels] bytes, FLOAT32 the same pixels little-endian in [-1, 1]. The others need 1 or 3
    channels, else EncodeError; JPEG and WEBP take a quality of 1 to 100. WEBP knows no grey: it holds RGB.
    """
    if form is Format.FLOAT32:
        floats = images.clamp(-1, 1).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return [each.astype("<f4").tobytes() for each in floats]
    pixels = to_pixels(images)
    if form is Format.RAW:
        return [each.tobytes() for each in pixels]
    return [_compressed(each, form, quality) for each in pixels]


def finish_all(decoder: Decoder, samples: Tensor, form: Format, quality: int = DEFAULT_QUALITY) -> list[bytes]:
    """Samples at t = 0, as the network makes them, to encoded images: a few at a time, since decoding takes memory."""
    parts = [samples[start : start + DECODED_AT_ONCE] for start in range(0, len(samples), DECODED_AT_ONCE)]
    return [image for part in parts for image in encode_all(decoder.decode(part), form, quality)]


def to_pixels(images: Tensor) -> npt.NDArray[np.uint8]:
    """[..., channels, height, width] in [-1, 1] to [..., height, width, channels] bytes, rounded to nearest."""
    scaled = ((images.clamp(-1, 1) + 1) * 127.5).round().byte()
    pixels: npt.NDArray[np.uint8] = scaled.movedim(-3, -1).contiguous().cpu().numpy()
    return pixels


def supports(form: Format, channels: int) -> bool:
    """Whether `encode` can hold an image of so many channels."""
    return form in (Format.RAW, Format.FLOAT32) or channels in MODES


def _picture(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    channels = pixels.shape[2]
    if channels not in MODES:
        raise EncodeError(f"pictures hold 1 or 3 channels, the model makes {channels}: ask for raw pixels")
    return Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)


def _compressed(pixels: npt.NDArray[np.uint8], form: Format, quality: int) -> bytes:
    picture, buffer = _picture(pixels), io.BytesIO()
    if form is Format.PNG:
        picture.save(buffer, "PNG", compress_level=PNG_LEVEL)
    elif form is Format.JPEG:
        picture.save(buffer, "JPEG", quality=quality, subsampling=0)
    else:
        picture.convert("RGB").save(buffer, "WEBP", quality=quality, method=0)
    return buffer.getvalue()
