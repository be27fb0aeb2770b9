"""Gaussians in glTF 2.0 with KHR_gaussian_splatting: .glb, and .gltf with buffers inside or beside it.

https://github.com/KhronosGroup/glTF/tree/main/extensions/2.0/Khronos/KHR_gaussian_splatting

Rotations are xyzw, opacities linear, scales linear. Until 2026 drafts stored the logarithms of scales, under the same
name; a negative scale tells such a file. Nodes place, turn and scale gaussians evenly; harmonics turn with them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headway.errors import BadInput
from services.splat_worker.readers.gltf_accessors import read_attribute
from services.splat_worker.readers.gltf_document import EXTENSION, Document, Primitive, read_document
from services.splat_worker.readers.gltf_nodes import Placement, placements
from services.splat_worker.readers.sh_rotation import rotated_sh
from services.splat_worker.scene import SH_COEFFICIENTS, FloatArray, Gaussians, SceneLimits

POSITION = "POSITION"
SCALE, ROTATION, OPACITY = (f"{EXTENSION}:{name}" for name in ("SCALE", "ROTATION", "OPACITY"))
LOG_SHARE = 0.5
"""From this share of gaussians with a negative scale on, a file holds logarithms."""
STRAY_SHARE = 0.01
"""Up to this share, gaussians with a negative scale are damaged ones and dropped; between the two a file is refused."""
_POINTS = 0


@dataclass(frozen=True)
class _Block:
    """The gaussians of a primitive at one place."""

    where: str
    primitive: Primitive
    placement: Placement
    count: int
    degree: int


def sh_attribute(degree: int, coefficient: int) -> str:
    """The name of the attribute with one coefficient of each channel."""
    return f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{coefficient}"


def read_gltf(path: Path, limits: SceneLimits) -> Gaussians:
    """Read all gaussians that the file's scene shows; raises BadInput naming the field and the offset."""
    document, buffers = read_document(path, limits.max_file_bytes)
    blocks = list(_blocks(document))
    if not blocks:
        raise BadInput("meshes", f"no primitive in the scene has {EXTENSION}")
    total = sum(block.count for block in blocks)
    if total > limits.max_gaussians:
        raise BadInput("accessors", f"{total} gaussians in all; the limit is {limits.max_gaussians}")
    degree = max(block.degree for block in blocks)
    parts = [_decode(document, buffers, block, degree) for block in blocks]
    names = ("means", "quats", "scales", "opacities", "sh")
    return Gaussians(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _blocks(document: Document) -> Iterator[_Block]:
    for placement in placements(document):
        for number, primitive in enumerate(document.meshes[placement.mesh].primitives):
            if primitive.extensions.splatting is not None:
                where = f"meshes.{placement.mesh}.primitives.{number}"
                _check(where, primitive)
                yield _Block(where, primitive, placement, _count(document, where, primitive), _degree(primitive, where))


def _check(where: str, primitive: Primitive) -> None:
    splatting = primitive.extensions.splatting
    assert splatting is not None
    if splatting.extensions:
        raise BadInput(f"{where}.extensions", f"{', '.join(splatting.extensions)[:200]} is not supported")
    for field, value, only in (
        ("mode", primitive.mode, _POINTS),
        ("kernel", splatting.kernel, "ellipse"),
        ("colorSpace", splatting.colorSpace, "srgb_rec709_display"),
        ("projection", splatting.projection, "perspective"),
    ):
        if value != only:
            raise BadInput(f"{where}.{field}", f"{str(value)[:64]!r}; must be {only!r}")
    missing = {POSITION, SCALE, ROTATION, OPACITY, sh_attribute(0, 0)} - set(primitive.attributes)
    if missing:
        raise BadInput(f"{where}.attributes", f"{', '.join(sorted(missing))} missing")


def _count(document: Document, where: str, primitive: Primitive) -> int:
    """The gaussians of a primitive: all its accessors must agree."""
    counts = set[int]()
    for name in _names(primitive):
        number = primitive.attributes[name]
        if number >= len(document.accessors):
            raise BadInput(f"{where}.attributes.{name}", f"accessor {number}; there are {len(document.accessors)}")
        counts.add(document.accessors[number].count)
    if len(counts) != 1:
        raise BadInput(f"{where}.attributes", f"accessors of {sorted(counts)[:8]} elements; all must have as many")
    return counts.pop()


def _names(primitive: Primitive) -> list[str]:
    """The attributes that are read."""
    return [name for name in primitive.attributes if name == POSITION or name.startswith(f"{EXTENSION}:")]


def _degree(primitive: Primitive, where: str) -> int:
    """The highest degree that is whole, as all below it must be."""
    found = [_whole(primitive, degree) for degree in range(len(SH_COEFFICIENTS))]
    degree = max(number for number, there in enumerate(found) if there > 0)
    for number, there in enumerate(found[: degree + 1]):
        if there != 2 * number + 1:
            raise BadInput(f"{where}.attributes", f"{there} harmonics of degree {number}; must be {2 * number + 1}")
    return degree


def _whole(primitive: Primitive, degree: int) -> int:
    return sum(sh_attribute(degree, number) in primitive.attributes for number in range(2 * degree + 1))


def _decode(document: Document, buffers: list[memoryview], block: _Block, degree: int) -> Gaussians:
    def read(name: str) -> FloatArray:
        return read_attribute(document, buffers, block.primitive.attributes[name], f"{block.where}.attributes.{name}")

    placement = block.placement
    sh = np.zeros((block.count, SH_COEFFICIENTS[degree], 3), np.float32)
    for band in range(block.degree + 1):
        for number in range(2 * band + 1):
            sh[:, band * band + number] = read(sh_attribute(band, number))
    with np.errstate(over="ignore", invalid="ignore"):  # what leaves float32 is dropped by the scene's checks
        return Gaussians(
            means=placement.moved(read(POSITION)),
            quats=placement.turned(read(ROTATION)[:, [3, 0, 1, 2]]),
            scales=_linear(read(SCALE), f"{block.where}.attributes.{SCALE}") * np.float32(placement.scale),
            opacities=read(OPACITY)[:, 0],
            sh=sh if placement.is_upright else rotated_sh(sh, placement.rotation),
        )


def _linear(scales: FloatArray, field: str) -> FloatArray:
    """Scales as the ratified extension has them, of either kind of file."""
    negative: npt.NDArray[np.bool_] = np.any(scales < 0, axis=1)
    share = float(negative.mean())
    if share <= STRAY_SHARE:
        return scales
    if share < LOG_SHARE:
        raise BadInput(
            field, f"{int(negative.sum())} of {len(scales)} gaussians have a negative scale: too many for linear "
            "scales, too few for the logarithms of early drafts"
        )  # fmt: skip
    return np.exp(scales, dtype=np.float32)


def has_log_scales(path: Path, limits: SceneLimits) -> bool:
    """Whether a file that can be read was written for a draft of the extension."""
    document, buffers = read_document(path, limits.max_file_bytes)
    blocks = list(_blocks(document))
    fields = [f"{block.where}.attributes.{SCALE}" for block in blocks]
    numbers = [block.primitive.attributes[SCALE] for block in blocks]
    scales = [read_attribute(document, buffers, number, field) for number, field in zip(numbers, fields, strict=True)]
    return any(float((block < 0).any(axis=1).mean()) >= LOG_SHARE for block in scales)
