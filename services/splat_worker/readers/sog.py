"""Gaussians in SOG: a zip file of meta.json and lossless WebP images, decoded by gsply after all of it was checked.

Coordinates stay as the file has them; cameras are given in the same frame. As in PlayCanvas' own reader, a rotation
whose tag is none of the four is the identity, and a label beyond the palette has no higher harmonics.
"""

import io
import zipfile
from pathlib import Path

import gsply
import imagecodecs
import numpy as np

from headway.errors import BadInput
from services.splat_worker.readers.activations import activate
from services.splat_worker.readers.sog_archive import open_archive, read_member
from services.splat_worker.readers.sog_meta import (
    MAX_META_BYTES,
    MAX_PALETTE,
    PALETTE_COLUMNS,
    SH_BANDS,
    SogMeta,
    SogMetaV1,
    parse_meta,
)
from services.splat_worker.readers.webp import ImageSize, webp_size
from services.splat_worker.scene import Gaussians, SceneLimits

_META = "meta.json"
_PADDING_PIXELS = 1 << 16  # images are padded to whole rows, or to powers of two
_MAX_PALETTE_PIXELS = MAX_PALETTE * max(SH_BANDS)
_MAX_BYTES_PER_PIXEL = 5  # what lossless WebP may need for noise, with room
_MAX_IMAGE_HEADER_BYTES = 1 << 16


def read_sog(path: Path, limits: SceneLimits) -> Gaussians:
    """Read a bundle of either version; raises BadInput naming the member or the field of meta.json."""
    with path.open("rb") as file, open_archive(file) as archive:
        meta = parse_meta(read_member(archive, _META, MAX_META_BYTES), limits.max_gaussians)
        images = {}
        for name, most_pixels in _most_pixels(meta).items():
            most_bytes = most_pixels * _MAX_BYTES_PER_PIXEL + _MAX_IMAGE_HEADER_BYTES
            images[name] = read_member(archive, name, most_bytes)
    sizes = {name: webp_size(name, data) for name, data in images.items()}
    _check_textures(meta, sizes)
    if meta.shN is not None:
        _check_palette(meta, meta.shN.files[0], sizes[meta.shN.files[0]])
    return _decode(_bundle(meta, images))


def _textures(meta: SogMeta | SogMetaV1) -> tuple[str, ...]:
    """Images with a pixel for each gaussian, in which that pixel stands at the same place."""
    files = (*meta.means.files, *meta.quats.files, *meta.scales.files, *meta.sh0.files)
    return files if meta.shN is None else (*files, meta.shN.files[1])


def _most_pixels(meta: SogMeta | SogMetaV1) -> dict[str, int]:
    """Every image that meta.json names, and the most pixels that it may have."""
    most = dict.fromkeys(_textures(meta), 4 * meta.count + _PADDING_PIXELS)
    return most if meta.shN is None else {**most, meta.shN.files[0]: _MAX_PALETTE_PIXELS}


def _check_textures(meta: SogMeta | SogMetaV1, sizes: dict[str, ImageSize]) -> None:
    names, most = _textures(meta), _most_pixels(meta)
    for name in names:
        size = sizes[name]
        if not meta.count <= size.pixels <= most[name]:
            raise BadInput(
                f"member {name}",
                f"{size.width} x {size.height} pixels for {meta.count} gaussians; "
                f"must be {meta.count} to {most[name]} pixels",
            )
        if size != sizes[names[0]]:
            raise BadInput(f"member {name}", f"{size.width} x {size.height} pixels; must be of {names[0]}'s size")


def _check_palette(meta: SogMeta | SogMetaV1, name: str, size: ImageSize) -> None:
    """The image of centroids has 64 entries in a row, each as wide as it has coefficients."""
    bands = {PALETTE_COLUMNS * coefficients: bands for coefficients, bands in SH_BANDS.items()}
    room = PALETTE_COLUMNS * size.height
    if size.width not in bands or room > MAX_PALETTE:
        most = MAX_PALETTE // PALETTE_COLUMNS
        raise BadInput(
            f"member {name}",
            f"{size.width} x {size.height} pixels; must be one of {tuple(bands)} wide and at most {most} high",
        )
    if not isinstance(meta, SogMeta) or meta.shN is None:
        return  # the first version takes bands and room from the image
    if bands[size.width] != meta.shN.bands:
        raise BadInput("meta.json shN.bands", f"{meta.shN.bands}, but {name} has {bands[size.width]}")
    if room < meta.shN.count:
        raise BadInput("meta.json shN.count", f"{meta.shN.count}, but {name} has room for {room}")


def _bundle(meta: SogMeta | SogMetaV1, images: dict[str, bytes]) -> bytes:
    """What was checked and nothing else, as gsply reads it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(_META, meta.model_dump_json(exclude_none=True))
        for name, data in images.items():
            archive.writestr(name, data)
    return out.getvalue()


def _decode(bundle: bytes) -> Gaussians:
    try:
        decoded = gsply.sogread(bundle)
    except (imagecodecs.WebpError, ValueError, MemoryError) as error:
        raise BadInput("file", f"damaged SOG: {error}") from None
    sh = np.concatenate([decoded.sh0[:, None, :], decoded.shN], axis=1)
    return activate(decoded.means, decoded.quats, decoded.scales, decoded.opacities, sh)
