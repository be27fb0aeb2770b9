import io

import numpy as np
import pytest
import torch
from PIL import Image

from services.dit_worker.encode import EncodeError, Format, encode, to_pixels

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


def test_raw_is_the_clamped_tensor():
    raw = np.frombuffer(encode(COLOUR, Format.RAW), dtype="<f4").reshape(3, 8, 8)
    assert np.array_equal(raw, COLOUR.clamp(-1, 1).numpy())


def test_pixels_span_the_byte_range():
    assert to_pixels(GREY).min() == 0
    assert to_pixels(GREY).max() == 255


def test_latent_channels_are_not_a_picture():
    with pytest.raises(EncodeError, match="raw tensor"):
        encode(torch.zeros(4, 8, 8), Format.PNG)
    assert len(encode(torch.zeros(4, 8, 8), Format.RAW)) == 4 * 64 * 4
