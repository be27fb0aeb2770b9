"""Typed elements of a glTF file's buffers as float32, with every offset and stride proved first."""

from dataclasses import dataclass

import numpy as np

from headway.errors import BadInput
from services.splat_worker.readers.gltf_document import EXTENSION, Accessor, Document
from services.splat_worker.scene import FloatArray


@dataclass(frozen=True)
class _Component:
    name: str
    kind: str
    """NumPy's."""
    most: int | None
    """What 1.0 is stored as where values are normalised; None for floats."""


_COMPONENTS = {
    5120: _Component("byte", "<i1", 127),
    5121: _Component("unsigned byte", "<u1", 255),
    5122: _Component("short", "<i2", 32767),
    5123: _Component("unsigned short", "<u2", 65535),
    5126: _Component("float", "<f4", None),
}
_WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}
_FLOAT, _SIGNED, _UNSIGNED = {5126}, {5120, 5122}, {5121, 5123}
_ALLOWED = {
    "POSITION": ("VEC3", _FLOAT | _SIGNED | _UNSIGNED, None),
    f"{EXTENSION}:ROTATION": ("VEC4", _FLOAT | _SIGNED, True),
    f"{EXTENSION}:SCALE": ("VEC3", _FLOAT | _SIGNED | _UNSIGNED, None),
    f"{EXTENSION}:OPACITY": ("SCALAR", _FLOAT | _UNSIGNED, True),
}
"""Shape, component types, and whether integers must be normalised (None: either). Harmonics are VEC3 of floats.

Integers of POSITION are KHR_mesh_quantization's; drafts and the ratified text differ on those of SCALE: all are read.
"""
_HARMONIC = ("VEC3", _FLOAT, None)


def read_attribute(document: Document, buffers: list[memoryview], number: int, field: str) -> FloatArray:
    """The elements [count, width] of an accessor, copied. `field` ends in the attribute's name.

    Raises BadInput naming `field`, the accessor or its view, and the offset in the buffer.
    """
    accessor = document.accessors[number]
    name = field.rpartition(".")[2]
    _check_type(accessor, name, field)
    component, width = _COMPONENTS[accessor.componentType], _WIDTHS[accessor.type]
    data, offset, stride = _place(document, buffers, number, width * np.dtype(component.kind).itemsize)
    kind = np.dtype(component.kind)
    stored: np.ndarray[tuple[int, int], np.dtype[np.generic]] = np.ndarray(
        (accessor.count, width), kind, buffer=data, offset=offset, strides=(stride, kind.itemsize)
    )
    values = stored.astype(np.float32)
    if component.most is not None and accessor.normalized:
        values = np.maximum(values / component.most, -1)
    return values


def _check_type(accessor: Accessor, name: str, field: str) -> None:
    shape, kinds, normalized = _ALLOWED.get(name, _HARMONIC)
    if accessor.type != shape or accessor.componentType not in kinds:
        known = ", ".join(_COMPONENTS[kind].name for kind in sorted(kinds))
        raise BadInput(field, f"{accessor.type[:16]} of {accessor.componentType}; must be {shape} of {known}")
    if normalized is not None and accessor.componentType not in _FLOAT and accessor.normalized != normalized:
        raise BadInput(field, "integers must be normalised")
    if accessor.sparse is not None:
        raise BadInput(field, "sparse accessors are not supported")


def _place(document: Document, buffers: list[memoryview], number: int, size: int) -> tuple[memoryview, int, int]:
    """The buffer, the first element's offset and the stride, all elements proved to lie inside the view."""
    accessor, field = document.accessors[number], f"accessors.{number}"
    if accessor.bufferView is None or accessor.bufferView >= len(document.bufferViews):
        raise BadInput(f"{field}.bufferView", f"{accessor.bufferView}; there are {len(document.bufferViews)}")
    view = document.bufferViews[accessor.bufferView]
    where = f"bufferViews.{accessor.bufferView}"
    if view.buffer >= len(buffers):
        raise BadInput(f"{where}.buffer", f"{view.buffer}; there are {len(buffers)}")
    data = buffers[view.buffer]
    if view.byteOffset + view.byteLength > len(data):
        raise BadInput(
            where, f"{view.byteLength} bytes from offset {view.byteOffset}; buffer {view.buffer} has {len(data)}"
        )
    stride = size if view.byteStride is None else view.byteStride
    if stride < size:
        raise BadInput(f"{where}.byteStride", f"{stride}; an element has {size} bytes")
    end = accessor.byteOffset + (accessor.count - 1) * stride + size
    if end > view.byteLength:
        raise BadInput(
            field,
            f"{accessor.count} elements of {size} bytes, {stride} apart from offset {accessor.byteOffset}, end at "
            f"{end}; the view at offset {view.byteOffset} has {view.byteLength}",
        )
    return data, view.byteOffset + accessor.byteOffset, stride
