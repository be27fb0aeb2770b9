"""SOG files for tests, written from the format's description: small, real, and easy to damage."""

import io
import json
import math
import zipfile
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from services.splat_worker.scene import Gaussians

Members = dict[str, bytes]
Codes = npt.NDArray[np.uint8]


def members(scene: Gaussians, version: int = 2) -> Members:
    """Every gaussian has its own palette entry; codebooks are even steps between the extremes."""
    count, higher = len(scene.means), scene.sh[:, 1:]
    log_means = np.sign(scene.means) * np.log1p(np.abs(scene.means))
    mins, maxs = log_means.min(axis=0), log_means.max(axis=0)
    steps = np.round((log_means - mins) / (maxs - mins) * 65535).astype(np.uint16)
    meta: dict[str, object] = {
        "means": {"mins": mins.tolist(), "maxs": maxs.tolist(), "files": ["means_l.webp", "means_u.webp"]},
        "quats": {"files": ["quats.webp"]},
    }
    if version == 1:
        opacity = np.log(scene.opacities / (1 - scene.opacities))[:, None]
        scales, colors = Ranges(np.log(scene.scales)), Ranges(np.hstack([scene.sh[:, 0], opacity]))
        meta["means"]["shape"] = [count, 3]
    else:
        opacity = np.round(scene.opacities[:, None] * 255).astype(np.uint8)
        scales, colors = Codebook(np.log(scene.scales)), Codebook(scene.sh[:, 0])
        colors.codes = np.hstack([colors.codes, opacity])
        meta |= {"version": 2, "count": count}
    meta["scales"] = {**scales.meta, "files": ["scales.webp"]}
    meta["sh0"] = {**colors.meta, "files": ["sh0.webp"]}
    files = {
        "means_l.webp": _texture(steps & 0xFF),
        "means_u.webp": _texture(steps >> 8),
        "quats.webp": _texture(_quats(scene.quats)),
        "scales.webp": _texture(scales.codes),
        "sh0.webp": _texture(colors.codes),
    }
    if higher.shape[1]:
        palette = Ranges(higher) if version == 1 else Codebook(higher)
        meta["shN"] = {**palette.meta, "files": ["shN_centroids.webp", "shN_labels.webp"]}
        if version == 2:
            meta["shN"] |= {"count": count, "bands": math.isqrt(scene.sh.shape[1]) - 1}
        labels = np.arange(count)[:, None]
        files["shN_labels.webp"] = _texture(np.hstack([labels & 0xFF, labels >> 8, labels * 0]))
        files["shN_centroids.webp"] = _centroids(palette.codes)
    return {"meta.json": json.dumps(meta).encode(), **files}


class Codebook:
    """Version 2: one table of 256 values."""

    def __init__(self, values: npt.NDArray[np.float32]) -> None:
        low, high = float(values.min()), float(values.max())
        self.meta: dict[str, object] = {"codebook": np.linspace(low, high, 256).tolist()}
        self.codes = np.round((values - low) / (high - low) * 255).astype(np.uint8)


class Ranges:
    """Version 1: each column between its bounds; the palette's columns share theirs."""

    def __init__(self, values: npt.NDArray[np.float32]) -> None:
        columns = 0 if values.ndim == 2 else None
        low, high = values.min(axis=columns), values.max(axis=columns)
        self.meta: dict[str, object] = {"mins": low.tolist(), "maxs": high.tolist()}
        self.codes = np.round((values - low) / (high - low) * 255).astype(np.uint8)


def webp(pixels: Codes, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", **{"lossless": True, "exact": True, "method": 0, **options})
    return out.getvalue()


def bundle(files: Members, method: int = zipfile.ZIP_STORED) -> bytes:
    """The same bytes at any time of day: hypothesis replays what it draws from them."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


def with_meta(files: Members, change: Callable[[dict], object]) -> bytes:
    """The bundle after `change` was done to the parsed meta.json."""
    meta = json.loads(files["meta.json"])
    change(meta)
    return bundle({**files, "meta.json": json.dumps(meta).encode()})


def _texture(rows: npt.NDArray[np.integer]) -> bytes:
    """One pixel for each row of 3 or 4 bytes, padded to a rectangle."""
    width = math.isqrt(len(rows) - 1) + 1
    pixels = np.full((-(-len(rows) // width) * width, 4), 255, dtype=np.uint8)
    pixels[: len(rows), : rows.shape[1]] = rows
    return webp(pixels.reshape(-1, width, 4))


def _centroids(codes: Codes) -> bytes:
    """64 entries in a row, each as wide as it has coefficients."""
    count, coefficients = codes.shape[:2]
    pixels = np.full((-(-count // 64) * 64, coefficients, 4), 255, dtype=np.uint8)
    pixels[:count, :, :3] = codes
    return webp(pixels.reshape(-1, 64 * coefficients, 4))


def _quats(quats: npt.NDArray[np.float32]) -> Codes:
    """The three smallest of wxyz in steps of sqrt(2) / 255; the fourth byte tells the largest, made positive."""
    largest = np.abs(quats).argmax(axis=1)
    signed = quats * np.sign(np.take_along_axis(quats, largest[:, None], axis=1))
    rest = np.array([[i for i in range(4) if i != which] for which in range(4)])[largest]
    small = np.take_along_axis(signed, rest, axis=1)
    return np.hstack([np.round((small * math.sqrt(2) + 1) / 2 * 255), 252 + largest[:, None]]).astype(np.uint8)
