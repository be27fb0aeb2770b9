"""Frames as bytes: scaled to the size that was asked for, then PNG, JPEG, WebP or raw."""

import enum
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from headway.errors import BadInput
from services.splat_worker.scene import FloatArray

Pixels = npt.NDArray[np.uint8]
DEFAULT_QUALITY = 90


class Encoding(enum.Enum):
    """How a frame comes back; values are Pillow's names."""

    PNG = "PNG"
    JPEG = "JPEG"
    WEBP = "WEBP"
    RAW = "RAW"
    H264 = "H264"
    """One frame of a video: see `services.splat_worker.video`."""


def to_pixels(rgb: FloatArray) -> Pixels:
    """RGB [height, width, 3] in [0, 1], clipped and rounded to bytes."""
    scaled = rgb * np.float32(255)
    np.clip(scaled, 0, 255, out=scaled)
    np.rint(scaled, out=scaled)
    return scaled.astype(np.uint8)


def scale_up(pixels: Pixels, width: int, height: int) -> Pixels:
    """The frame [height, width, 3] at the size asked for, bicubic; itself when it has that size."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def encode(pixels: Pixels, encoding: Encoding, quality: int = DEFAULT_QUALITY) -> bytes:
    """The frame's bytes in any encoding but H264; `quality` (1 to 100) counts for JPEG and WebP only. Deterministic.

    PNG is written at its lowest effort: the default takes longer than the frame. Raises BadInput for the quality.
    """
    if not 1 <= quality <= 100:
        raise BadInput("options.encoding_quality", f"{quality}; must be 1 to 100")
    if encoding is Encoding.RAW:
        return pixels.tobytes()
    options = {
        Encoding.PNG: {"compress_level": 1},
        Encoding.JPEG: {"quality": quality},
        Encoding.WEBP: {"quality": quality, "method": 0},
    }[encoding]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, encoding.value, **options)
    return buffer.getvalue()
