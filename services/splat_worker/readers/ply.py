"""Gaussians in .ply: the INRIA training layout, and PlayCanvas' compressed layout (decoded by gsply)."""

import mmap
from pathlib import Path

import gsply
import numpy as np
import numpy.typing as npt

from headway.errors import BadInput
from services.splat_worker.readers.activations import activate
from services.splat_worker.readers.ply_header import Element, parse_header, rows
from services.splat_worker.scene import FloatArray, Gaussians, SceneLimits

CHUNK = 256  # gaussians that share a chunk of a compressed file
_REST_COUNTS = (0, 9, 24, 45)  # SH values beyond degree 0, for degrees 0 to 3
_CHUNK_BOUNDS = tuple(
    f"{end}_{what}"
    for group in (("x", "y", "z"), ("scale_x", "scale_y", "scale_z"), ("r", "g", "b"))
    for end in ("min", "max")
    for what in group
)
_PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")


def read_ply(path: Path, limits: SceneLimits) -> Gaussians:
    """Read either layout; raises BadInput naming the element or property and the byte offset."""
    with path.open("rb") as file:
        size = path.stat().st_size
        if size == 0:
            raise BadInput("file", "empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            elements = parse_header(mapped[: 1 << 16], len(mapped), limits.max_gaussians)
            if "chunk" in elements:
                _check_compressed(elements)
                return _decode_compressed(bytes(mapped))
            return _read_inria(bytes(mapped), elements)


def _read_inria(data: bytes, elements: dict[str, Element]) -> Gaussians:
    vertex = _need(elements, "vertex")
    rest = [name for name in vertex.fields if name.startswith("f_rest_")]
    if len(rest) not in _REST_COUNTS:
        raise BadInput("f_rest", f"{len(rest)} properties; must be one of {_REST_COUNTS}")
    if "scale_2" not in vertex.fields and "scale_1" in vertex.fields:
        raise BadInput("scale_2", "missing: this is a 2D gaussian splatting scene, which is not supported")
    table = rows(memoryview(data), vertex)
    dc = _columns(table, vertex, [f"f_dc_{i}" for i in range(3)])
    # f_rest is channel-major in the file: all of red, then green, then blue.
    higher = _columns(table, vertex, [f"f_rest_{i}" for i in range(len(rest))])
    higher = higher.reshape(vertex.count, 3, len(rest) // 3).transpose(0, 2, 1)
    return activate(
        means=_columns(table, vertex, ["x", "y", "z"]),
        quats=_columns(table, vertex, [f"rot_{i}" for i in range(4)]),
        log_scales=_columns(table, vertex, [f"scale_{i}" for i in range(3)]),
        logits=_columns(table, vertex, ["opacity"])[:, 0],
        sh=np.concatenate([dc[:, None, :], higher], axis=1),
    )


def _need(elements: dict[str, Element], name: str) -> Element:
    if name not in elements:
        raise BadInput(f"element {name}", f"missing; the file has {sorted(elements)}")
    return elements[name]


def _columns(table: npt.NDArray[np.void], element: Element, names: list[str]) -> FloatArray:
    out = np.empty((element.count, len(names)), dtype=np.float32)
    for column, name in enumerate(names):
        if name not in element.fields:
            raise BadInput(f"property {name}", f"missing from element {element.name} at offset {element.offset}")
        out[:, column] = table[name]
    return out


def _check_compressed(elements: dict[str, Element]) -> None:
    """What gsply's decoder takes on trust: layouts, order and counts that agree."""
    chunk, vertex = _need(elements, "chunk"), _need(elements, "vertex")
    _check_layout(chunk, _CHUNK_BOUNDS, "<f4")
    _check_layout(vertex, _PACKED, "<u4")
    if chunk.count != -(-vertex.count // CHUNK):
        raise BadInput(
            "element chunk", f"count {chunk.count} does not fit {vertex.count} gaussians in chunks of {CHUNK}"
        )
    order = [name for name in elements if name in ("chunk", "vertex", "sh")]
    if order != list(elements) or order[:2] != ["chunk", "vertex"]:
        raise BadInput("header", f"elements {list(elements)}; must be chunk, vertex and perhaps sh, in this order")
    if "sh" in elements:
        sh = elements["sh"]
        if sh.count != vertex.count or len(sh.fields) not in _REST_COUNTS[1:]:
            raise BadInput("element sh", f"{sh.count} rows of {len(sh.fields)}; must be {vertex.count} of 9, 24 or 45")
        _check_layout(sh, tuple(f"f_rest_{i}" for i in range(len(sh.fields))), "u1")


def _check_layout(element: Element, names: tuple[str, ...], kind: str) -> None:
    if element.row != np.dtype([(name, kind) for name in names]):
        raise BadInput(f"element {element.name}", f"must have the properties {', '.join(names)} of type {kind}")


def _decode_compressed(data: bytes) -> Gaussians:
    decoded = gsply.decompress_from_bytes(data)
    sh = np.concatenate([decoded.sh0[:, None, :], decoded.shN], axis=1)
    return activate(decoded.means, decoded.quats, decoded.scales, decoded.opacities, sh)
