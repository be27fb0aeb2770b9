"""glTF files for tests: documents to change by hand, and the bytes that they point at."""

import base64
import json
import struct
from typing import Any

import numpy as np

from services.splat_worker.scene import Gaussians

NAME = "KHR_gaussian_splatting"
Arrays = dict[str, np.ndarray]
_KINDS = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "f4": 5126}
_TYPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}


def arrays(scene: Gaussians) -> Arrays:
    """The attributes of a scene, all float32."""
    found = {
        "POSITION": scene.means,
        f"{NAME}:ROTATION": scene.quats[:, [1, 2, 3, 0]],
        f"{NAME}:SCALE": scene.scales,
        f"{NAME}:OPACITY": scene.opacities,
    }
    for degree in range(int(scene.sh.shape[1] ** 0.5)):
        for number in range(2 * degree + 1):
            found[f"{NAME}:SH_DEGREE_{degree}_COEF_{number}"] = scene.sh[:, degree * degree + number]
    return {name: np.ascontiguousarray(values) for name, values in found.items()}


def document(attributes: Arrays) -> tuple[dict[str, Any], bytes]:
    """A document of one primitive, and its buffer. Integers are normalised; padding makes odd strides."""
    views, accessors, parts, offset = [], [], [], 0
    for values in attributes.values():
        kind = values.dtype.str[1:]
        size = values.itemsize * values[0].size
        stride = max(4, -(-size // 4) * 4)
        rows = np.zeros((len(values), stride), np.uint8)
        rows[:, :size] = values.reshape(len(values), -1).view(np.uint8).reshape(len(values), size)
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": rows.nbytes, "byteStride": stride})
        accessors.append({"bufferView": len(views) - 1, "componentType": _KINDS[kind], "count": len(values),
                          "type": _TYPES[values[0].size], "normalized": kind != "f4"})  # fmt: skip
        parts.append(rows.tobytes())
        offset += rows.nbytes
    splatting = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    primitive = {"mode": 0, "attributes": {name: number for number, name in enumerate(attributes)},
                 "extensions": {NAME: splatting}}  # fmt: skip
    found = {
        "asset": {"version": "2.0"}, "extensionsUsed": [NAME], "scene": 0, "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}], "meshes": [{"primitives": [primitive]}], "accessors": accessors,
        "bufferViews": views, "buffers": [{"byteLength": offset}],
    }  # fmt: skip
    return found, b"".join(parts)


def glb(found: dict[str, Any], binary: bytes) -> bytes:
    text = json.dumps(found).encode()
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + len(binary)
    return b"".join(
        [struct.pack("<4sII", b"glTF", 2, length), struct.pack("<I4s", len(text), b"JSON"), text,
         struct.pack("<I4s", len(binary), b"BIN\0"), binary]
    )  # fmt: skip


def gltf(found: dict[str, Any], binary: bytes) -> bytes:
    """With the buffer as a data URI."""
    uri = "data:application/octet-stream;base64," + base64.b64encode(binary).decode()
    return json.dumps(found | {"buffers": [{"byteLength": len(binary), "uri": uri}]}).encode()
