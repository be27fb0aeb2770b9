"""Frames as bytes: the same pixels come back."""

import io

import numpy as np
import pytest
from PIL import Image

from headway.errors import BadInput
from services.splat_worker.encode import Channel, Encoding, develop, encode, scale_up, to_pixels
from services.splat_worker.rasterizer import Picture

GRADIENT = np.stack(np.broadcast_arrays(np.linspace(0, 1, 40)[:, None], np.linspace(0, 1, 60), 0.5), axis=-1)
PIXELS = to_pixels(GRADIENT.astype(np.float32))


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_colours_are_clipped_and_rounded() -> None:
    rgb = np.array([[[-1, 0.5, 7]]], dtype=np.float32)
    assert to_pixels(rgb).tolist() == [[[0, 128, 255]]]


def test_png_and_raw_keep_every_pixel() -> None:
    assert np.array_equal(decoded(encode(PIXELS, Encoding.PNG)), PIXELS)
    raw = np.frombuffer(encode(PIXELS, Encoding.RAW), dtype=np.uint8)
    assert np.array_equal(raw.reshape(PIXELS.shape), PIXELS)


@pytest.mark.parametrize("encoding", [Encoding.JPEG, Encoding.WEBP])
def test_lossy_encodings_stay_near_and_follow_the_quality(encoding: Encoding) -> None:
    fine, coarse = encode(PIXELS, encoding, 95), encode(PIXELS, encoding, 10)
    assert np.abs(decoded(fine).astype(int) - PIXELS).mean() < 3
    assert len(coarse) < len(fine)
    assert encode(PIXELS, encoding, 95) == fine


def picture(height: int = 20, width: int = 30) -> Picture:
    """A near thing on the left half, nothing on the right."""
    alpha = np.zeros((height, width), dtype=np.float32)
    alpha[:, : width // 2] = 0.5
    rgb = np.broadcast_to(np.array([0.2, 0.5, 2.0], dtype=np.float32), (height, width, 3))
    return Picture(rgb, alpha, alpha * 4, visible=1, pairs=1, stages=None)


def test_floats_are_neither_clipped_nor_rounded_and_scaled_without_new_depths() -> None:
    channels = (Channel.EXPECTED_DEPTH, Channel.COLOR, Channel.ALPHA, Channel.DEPTH)
    for width, height in ((30, 20), (75, 41)):
        floats = develop(picture(), Encoding.FLOAT32, width, height, channels)
        assert floats.shape == (height, width, 6) and floats.dtype == np.dtype("<f4")
        assert np.frombuffer(encode(floats, Encoding.FLOAT32), dtype="<f4").tolist() == floats.ravel().tolist()
        expected, rgb, alpha, depth = floats[..., 0], floats[..., 1:4], floats[..., 4], floats[..., 5]
        assert np.allclose(rgb, [0.2, 0.5, 2.0], atol=1e-5)
        assert alpha.min() >= 0 and alpha.max() <= 0.5 and depth.max() <= 2
        # What is seen lies at 4; between it and nothing there is no other depth.
        assert np.allclose(expected[alpha > 0.01], 4, rtol=1e-4) and (expected[alpha == 0] == 0).all()


def test_bytes_hold_colour_alone() -> None:
    assert np.array_equal(develop(picture(), Encoding.PNG, 30, 20), to_pixels(picture().rgb))


def test_quality_out_of_range_is_refused() -> None:
    for quality in (0, 101):
        with pytest.raises(BadInput, match="encoding_quality"):
            encode(PIXELS, Encoding.JPEG, quality)


def test_frames_come_back_at_the_size_asked_for() -> None:
    assert scale_up(PIXELS, 60, 40) is PIXELS
    large = scale_up(PIXELS, 121, 83)
    assert large.shape == (83, 121, 3)
    assert abs(int(large[41, 60, 0]) - int(PIXELS[20, 30, 0])) <= 4
