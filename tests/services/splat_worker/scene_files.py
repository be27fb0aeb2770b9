"""Scene files for tests: small, real, and easy to damage."""

import functools
import struct
from pathlib import Path

import gsply
import numpy as np

from services.splat_worker.scene import Gaussians


def gaussians(count: int = 300, degree: int = 3, seed: int = 0) -> Gaussians:
    rng = np.random.default_rng(seed)
    quats = rng.normal(size=(count, 4))
    return Gaussians(
        means=rng.uniform(-2, 2, size=(count, 3)).astype(np.float32),
        quats=(quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32),
        scales=np.exp(rng.uniform(-5, -1, size=(count, 3))).astype(np.float32),
        opacities=rng.uniform(0.02, 0.98, count).astype(np.float32),
        sh=(rng.normal(size=(count, (degree + 1) ** 2, 3)) * 0.2).astype(np.float32),
    )


@functools.cache
def small(number: int) -> bytes:
    """One of a few small scenes: those that several tests load are measured once in a session."""
    return ply_bytes(gaussians(300 + 50 * number, 0, seed=number))


def ply_bytes(scene: Gaussians, *, extra: str = "", comments: str = "") -> bytes:
    """The INRIA layout, written from its description: names, log scales, logits, channel-major f_rest."""
    rest = scene.sh[:, 1:].transpose(0, 2, 1).reshape(len(scene.means), -1)
    logits = np.log(scene.opacities / (1 - scene.opacities))[:, None]
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{i}" for i in range(rest.shape[1])]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    columns = [scene.means, np.zeros_like(scene.means), scene.sh[:, 0], rest, logits, np.log(scene.scales), scene.quats]
    table = np.concatenate(columns, axis=1).astype("<f4")
    header = "ply\nformat binary_little_endian 1.0\n" + comments + f"element vertex {len(table)}\n"
    header += "".join(f"property float {name}\n" for name in names) + extra + "end_header\n"
    return header.encode() + table.tobytes()


def as_gsply(scene: Gaussians) -> gsply.GSData:
    return gsply.GSData.from_arrays(
        means=scene.means,
        scales=np.log(scene.scales),
        quats=scene.quats,
        opacities=np.log(scene.opacities / (1 - scene.opacities)),
        sh0=np.ascontiguousarray(scene.sh[:, 0]),
        shN=np.ascontiguousarray(scene.sh[:, 1:]),
        format="ply",
    )


def write_compressed_ply(path: Path, scene: Gaussians) -> bytes:
    path.write_bytes(gsply.compress_to_bytes(as_gsply(scene)))
    return path.read_bytes()


def write_spz(path: Path, scene: Gaussians, version: int) -> bytes:
    gsply.use_backend("auto")
    gsply.write_spz(path, as_gsply(scene), version=version, fractional_bits=16)
    return path.read_bytes()


def put_u32(data: bytes, offset: int, value: int) -> bytes:
    return data[:offset] + struct.pack("<I", value) + data[offset + 4 :]
