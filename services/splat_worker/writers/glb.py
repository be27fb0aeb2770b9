"""Writes .glb with KHR_gaussian_splatting as ratified: rotations xyzw, opacities and scales linear, all float32."""

import json
import struct
from pathlib import Path

import numpy as np

from services.splat_worker.readers.gltf import OPACITY, POSITION, ROTATION, SCALE, sh_attribute
from services.splat_worker.readers.gltf_document import EXTENSION
from services.splat_worker.scene import FloatArray, Scene

_FLOAT, _ARRAY_BUFFER, _POINTS = 5126, 34962, 0
_TYPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}


def write_glb(path: Path, scene: Scene) -> None:
    """One mesh of one primitive, one view for each attribute."""
    attributes = _attributes(scene)
    views, accessors, offset = [], [], 0
    for values in attributes.values():
        width = values.size // scene.count
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": values.nbytes, "target": _ARRAY_BUFFER})
        accessors.append(
            {"bufferView": len(views) - 1, "componentType": _FLOAT, "count": scene.count, "type": _TYPES[width]}
        )
        offset += values.nbytes
    accessors[0] |= {"min": scene.means.min(axis=0).tolist(), "max": scene.means.max(axis=0).tolist()}
    document = {
        "asset": {"version": "2.0", "generator": "Headway"},
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [_primitive({name: number for number, name in enumerate(attributes)})]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": offset}],
    }
    _write(path, json.dumps(document, separators=(",", ":")).encode(), list(attributes.values()))


def _attributes(scene: Scene) -> dict[str, FloatArray]:
    found = {
        POSITION: scene.means,
        ROTATION: np.ascontiguousarray(scene.quats[:, [1, 2, 3, 0]]),
        SCALE: scene.scales,
        OPACITY: scene.opacities,
    }
    for degree in range(scene.sh_degree + 1):
        for number in range(2 * degree + 1):
            found[sh_attribute(degree, number)] = np.ascontiguousarray(scene.sh[:, degree * degree + number])
    return found


def _primitive(attributes: dict[str, int]) -> dict[str, object]:
    splatting = {
        "kernel": "ellipse",
        "colorSpace": "srgb_rec709_display",
        "projection": "perspective",
        "sortingMethod": "cameraDistance",
    }
    return {"mode": _POINTS, "attributes": attributes, "extensions": {EXTENSION: splatting}}


def _write(path: Path, text: bytes, arrays: list[FloatArray]) -> None:
    text += b" " * (-len(text) % 4)
    size = sum(array.nbytes for array in arrays)
    with path.open("wb") as file:
        file.write(struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + size))
        file.write(struct.pack("<I4s", len(text), b"JSON") + text)
        file.write(struct.pack("<I4s", size, b"BIN\0"))
        for array in arrays:
            file.write(array.astype("<f4").tobytes())
