"""Frames as bytes: scaled to the size that was asked for, then PNG, JPEG, WebP, raw or floats."""

import enum
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from headway.errors import BadInput
from services.splat_worker.rasterizer import Picture, expected_depth
from services.splat_worker.scene import FloatArray

Pixels = npt.NDArray[np.uint8]
Developed = Pixels | FloatArray
DEFAULT_QUALITY = 90


class Encoding(enum.Enum):
    """How a frame comes back; values are Pillow's names."""

    PNG = "PNG"
    JPEG = "JPEG"
    WEBP = "WEBP"
    RAW = "RAW"
    FLOAT32 = "FLOAT32"
    H264 = "H264"
    """One frame of a video: see `services.splat_worker.video`."""


class Channel(enum.Enum):
    """What a frame may say of each pixel."""

    COLOR = "color"
    ALPHA = "alpha"
    DEPTH = "depth"
    EXPECTED_DEPTH = "expected depth"

    @property
    def values(self) -> int:
        """Numbers for each pixel."""
        return 3 if self is Channel.COLOR else 1


Channels = tuple[Channel, ...]
COLOR_ONLY: Channels = (Channel.COLOR,)
DEPTHS = frozenset((Channel.DEPTH, Channel.EXPECTED_DEPTH))


def develop(
    picture: Picture, encoding: Encoding, width: int, height: int, channels: Channels = COLOR_ONLY
) -> Developed:
    """The picture at the size asked for, as `encode` takes it: bytes [height, width, 3], or for FLOAT32 the channels in
    their order, little-endian float32 [height, width, values]. Depths need a picture with depth."""
    if encoding is not Encoding.FLOAT32:
        return scale_up(to_pixels(picture.rgb), width, height)
    planes = [_plane(picture, channel, width, height) for channel in channels]
    return np.concatenate(planes, axis=2, dtype="<f4")


def _plane(picture: Picture, channel: Channel, width: int, height: int) -> FloatArray:
    """One channel [height, width, values]. Colour is scaled up as in bytes; the others without overshooting, expected
    depth as the quotient of what it is the quotient of, so that no depth appears between a thing and nothing."""
    if channel is Channel.COLOR:
        parts = [_scale_plane(picture.rgb[..., part], width, height, Image.Resampling.BICUBIC) for part in range(3)]
        return np.stack(parts, axis=-1)
    alpha = _scale_plane(picture.alpha, width, height)
    if channel is Channel.ALPHA:
        return alpha[..., None]
    assert picture.depth is not None
    depth = _scale_plane(picture.depth, width, height)
    return (depth if channel is Channel.DEPTH else expected_depth(depth, alpha))[..., None]


def _scale_plane(
    plane: FloatArray, width: int, height: int, by: Image.Resampling = Image.Resampling.BILINEAR
) -> FloatArray:
    if plane.shape == (height, width):
        return plane
    return np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize((width, height), by))


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


def encode(pixels: Developed, encoding: Encoding, quality: int = DEFAULT_QUALITY) -> bytes:
    """The frame's bytes in any encoding but H264; `quality` (1 to 100) counts for JPEG and WebP only. Deterministic.

    PNG is written at its lowest effort: the default takes longer than the frame. Raises BadInput for the quality.
    """
    if not 1 <= quality <= 100:
        raise BadInput("options.encoding_quality", f"{quality}; must be 1 to 100")
    if encoding in (Encoding.RAW, Encoding.FLOAT32):
        return pixels.tobytes()
    options = {
        Encoding.PNG: {"compress_level": 1},
        Encoding.JPEG: {"quality": quality},
        Encoding.WEBP: {"quality": quality, "method": 0},
    }[encoding]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, encoding.value, **options)
    return buffer.getvalue()
