import io

import numpy as np
import pytest
import torch
from PIL import Image

from services.dit_worker.encode import EncodeError, Format, encode, supports, to_pixels

GREY = torch.linspace(-1.2, 1.2, 64).view(1, 8, 8)
COLOUR = torch.stack([GREY[0], -GREY[0], GREY[0].T])


@pytest.mark.parametrize("image", [GREY, COLOUR])
def test_png_is_lossless(image):
    opened = np.array(Image.open(io.BytesIO(encode(image, Format.PNG))))
    assert np.array_equal(opened.reshape(8, 8, -1), to_pixels(image))


@pytest.mark.parametrize(("form", "name"), [(Format.JPEG, "JPEG"), (Format.WEBP, "WEBP")])
@pytest.mark.parametrize("image", [GREY, COLOUR])
def test_lossy_formats_stay_near(image, form, name):
    with Image.open(io.BytesIO(encode(image, form))) as opened:
        assert (opened.format, opened.size) == (name, (8, 8))
        pixels = np.array(opened.convert("RGB")).astype(float)
    assert np.abs(pixels - to_pixels(image)).mean() < 25


def test_raw_formats_are_row_major_pixels():
    assert np.array_equal(np.frombuffer(encode(COLOUR, Format.RAW), np.uint8).reshape(8, 8, 3), to_pixels(COLOUR))
    floats = np.frombuffer(encode(COLOUR, Format.FLOAT32), dtype="<f4").reshape(8, 8, 3)
    assert np.array_equal(floats, COLOUR.clamp(-1, 1).permute(1, 2, 0).numpy())


def test_quality_reaches_the_encoder():
    noise = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for form in (Format.JPEG, Format.WEBP):
        assert len(encode(noise, form, quality=10)) < len(encode(noise, form, quality=95))


def test_pixels_span_the_byte_range():
    assert to_pixels(GREY).min() == 0
    assert to_pixels(GREY).max() == 255


def test_latent_channels_are_not_a_picture():
    with pytest.raises(EncodeError, match="raw pixels"):
        encode(torch.zeros(4, 8, 8), Format.PNG)
    assert len(encode(torch.zeros(4, 8, 8), Format.FLOAT32)) == 4 * 64 * 4
    assert not supports(Format.PNG, 4)
    assert supports(Format.RAW, 4)
