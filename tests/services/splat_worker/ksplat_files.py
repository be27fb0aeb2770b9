"""ksplat files for tests, written from the format's description: small, real, and easy to damage."""

import struct

import numpy as np

from services.splat_worker.scene import Gaussians

BUCKET, BLOCK, STEPS = 64, 5.0, 32767
SH_RANGE = (-1.0, 1.0)


def ksplat_bytes(scene: Gaussians, mode: int, sections: int = 1) -> bytes:
    """The scene split into sections; in modes 1 and 2 each has full buckets and one that is partly full."""
    parts = np.array_split(np.arange(len(scene.means)), sections)
    header = struct.pack("<BBHIIIIHH3fff", 0, 1, 0, sections, sections, *(len(scene.means),) * 2, mode, 0, 0, 0, 0,
                         *SH_RANGE)  # fmt: skip
    written = [_section(scene, rows, mode) for rows in parts]
    heads = b"".join(head.ljust(1024, b"\0") for head, _ in written)
    return header.ljust(4096, b"\0") + heads + b"".join(body for _, body in written)


def _section(scene: Gaussians, rows: np.ndarray, mode: int) -> tuple[bytes, bytes]:
    full, rest = divmod(len(rows), BUCKET) if mode else (0, 0)
    buckets = full + bool(rest)
    degree = int(scene.sh.shape[1] ** 0.5) - 1
    data = b"".join(
        _gaussian(scene, row, mode, _center(scene, rows, place // BUCKET)) for place, row in enumerate(rows)
    )
    centers = b"".join(_center(scene, rows, bucket).astype("<f4").tobytes() for bucket in range(buckets))
    lengths = struct.pack("<I", rest) if rest else b""
    head = struct.pack("<IIIIfHHIIIIH", len(rows), len(rows), BUCKET, buckets, BLOCK, 12, 0, STEPS if mode else 1,
                       len(data), full, bool(rest), degree)  # fmt: skip
    return head, lengths + centers + data


def _center(scene: Gaussians, rows: np.ndarray, bucket: int) -> np.ndarray:
    return scene.means[rows[bucket * BUCKET : (bucket + 1) * BUCKET]].mean(axis=0).astype(np.float32)


def _gaussian(scene: Gaussians, row: int, mode: int, center: np.ndarray) -> bytes:
    value = "<f2" if mode else "<f4"
    mean = scene.means[row].astype("<f4")
    if mode:
        mean = np.round((mean - center) / (BLOCK / 2) * STEPS + STEPS).astype("<u2")
    color = np.round(255 * (0.5 + 0.28209479177387814 * scene.sh[row, 0])).clip(0, 255)
    rgba = np.append(color, round(255 * scene.opacities[row])).astype("u1")
    # Each degree: all of red, then green, then blue.
    bands = [scene.sh[row, degree**2 : (degree + 1) ** 2].T.ravel() for degree in range(1, 4)]
    harmonics = np.concatenate(bands)
    if mode == 2:
        low, high = SH_RANGE
        stored = np.round((harmonics - low) / (high - low) * 255).clip(0, 255).astype("u1")
    else:
        stored = harmonics.astype(value)
    parts = (mean, scene.scales[row].astype(value), scene.quats[row].astype(value), rgba, stored)
    return b"".join(part.tobytes() for part in parts)
