"""The reader of glTF with KHR_gaussian_splatting, and what .glb writes."""

import copy
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gltf_files
import numpy as np
import pytest
import scene_files
from reading import close_to, read, refusal

from services.splat_worker.camera import look_at
from services.splat_worker.rasterizer import Rasterizer
from services.splat_worker.readers.format_name import format_name
from services.splat_worker.readers.gltf_document import MAX_JSON_VALUES
from services.splat_worker.scene import SceneLimits, build_scene
from services.splat_worker.writers import write_scene

NAME = gltf_files.NAME
GOOD = scene_files.gaussians(degree=3)
ARRAYS = gltf_files.arrays(GOOD)
DOCUMENT, BINARY = gltf_files.document(ARRAYS)


@pytest.mark.parametrize("degree", range(4))
def test_glb_and_gltf_are_read_exactly(tmp_path: Path, degree: int) -> None:
    truth = scene_files.gaussians(degree=degree)
    parts = gltf_files.document(gltf_files.arrays(truth))
    for name, data in (("a.glb", gltf_files.glb(*parts)), ("a.gltf", gltf_files.gltf(*parts))):
        scene = read(tmp_path, name, data)
        close_to(scene, truth, means=0, scales=0, sh=0)
        assert scene.sh_degree == degree


def test_what_is_written_is_what_was_read(tmp_path: Path) -> None:
    scene = build_scene(GOOD)
    write_scene(tmp_path / "a.glb", scene)
    close_to(read(tmp_path, "b.glb", (tmp_path / "a.glb").read_bytes()), GOOD, means=0, scales=0, sh=0)


def test_a_buffer_may_lie_beside_the_file_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "scene data.bin").write_bytes(BINARY)
    (tmp_path / "outer.bin").write_bytes(BINARY)
    (tmp_path / "inner" / "link.bin").symlink_to(tmp_path / "outer.bin")

    def of(uri: str) -> bytes:
        return json.dumps(DOCUMENT | {"buffers": [{"byteLength": len(BINARY), "uri": uri}]}).encode()

    close_to(read(tmp_path / "inner", "a.gltf", of("scene%20data.bin")), GOOD, means=0, scales=0, sh=0)
    for uri in ("../outer.bin", "%2e%2e/outer.bin", str(tmp_path / "outer.bin"), "file:///etc/passwd", "link.bin", ""):
        assert "same folder" in refusal(tmp_path / "inner", "a.gltf", of(uri))["buffers.0.uri"]


def test_integers_are_read_as_the_extension_has_them(tmp_path: Path) -> None:
    largest = float(np.abs(GOOD.means).max())
    stored = {
        **ARRAYS,
        "POSITION": np.round(GOOD.means / largest * 32767).astype("<i2"),
        f"{NAME}:ROTATION": np.round(ARRAYS[f"{NAME}:ROTATION"] * 32767).astype("<i2"),
        f"{NAME}:SCALE": np.round(GOOD.scales * 65535).astype("<u2"),
        f"{NAME}:OPACITY": np.round(GOOD.opacities * 255).astype("u1"),
    }
    document, binary = gltf_files.document(stored)
    document["nodes"][0]["scale"] = [largest] * 3
    document["extensionsRequired"] = ["KHR_mesh_quantization"]
    scene = read(tmp_path, "a.glb", gltf_files.glb(document, binary))
    np.testing.assert_allclose(scene.means, GOOD.means, atol=largest / 32000)
    np.testing.assert_allclose(scene.scales, GOOD.scales * largest, atol=largest / 65000)
    np.testing.assert_allclose(scene.opacities, GOOD.opacities, atol=1 / 500)
    np.testing.assert_allclose(np.abs((scene.quats * GOOD.quats).sum(axis=1)), 1, atol=1e-4)


def test_logarithms_of_scales_are_told_from_scales(tmp_path: Path) -> None:
    """Drafts until 2026 stored logarithms under the same name."""
    logs = gltf_files.glb(*gltf_files.document({**ARRAYS, f"{NAME}:SCALE": np.log(GOOD.scales)}))
    close_to(read(tmp_path, "a.glb", logs), GOOD, means=0, scales=1e-5, sh=0)
    assert "draft" in format_name(tmp_path / "a.glb", SceneLimits())


def test_a_stray_negative_scale_is_damage_and_many_are_refused(tmp_path: Path) -> None:
    scales = GOOD.scales.copy()
    scales[:2, 0] = -1
    stray = gltf_files.glb(*gltf_files.document({**ARRAYS, f"{NAME}:SCALE": scales}))
    scene = read(tmp_path, "a.glb", stray)
    assert (scene.dropped, scene.count) == (2, len(scales) - 2)
    scales[:30, 0] = -1
    many = gltf_files.glb(*gltf_files.document({**ARRAYS, f"{NAME}:SCALE": scales}))
    violations = refusal(tmp_path, "a.glb", many)
    assert "30 of 300" in violations[f"meshes.0.primitives.0.attributes.{NAME}:SCALE"]


def test_nodes_place_meshes_and_harmonics_turn_with_them(tmp_path: Path) -> None:
    """A camera that is moved like the scene sees the same picture: by the rasteriser, not by our own maths."""
    half = math.radians(37) / 2
    axis = np.array([1.0, 2.0, -0.5]) / np.linalg.norm([1.0, 2.0, -0.5])
    document = copy.deepcopy(DOCUMENT)
    document["nodes"] = [
        {"children": [1], "translation": [3.0, -1.0, 0.5]},
        {"mesh": 0, "rotation": [*(math.sin(half) * axis), math.cos(half)], "scale": [2.0, 2.0, 2.0]},
    ]
    moved = read(tmp_path, "a.glb", gltf_files.glb(document, BINARY))
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn = np.eye(3) + math.sin(2 * half) * cross + (1 - math.cos(2 * half)) * cross @ cross
    eye, up = np.array([3.0, 2.0, 4.0]), np.array([0.0, 1.0, 0.0])
    shift = np.array([3.0, -1.0, 0.5])
    here = look_at((3.0, 2.0, 4.0), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0), 50.0, 96, 80)
    there = look_at(tuple(2 * turn @ eye + shift), tuple(shift), tuple(turn @ up), 50.0, 96, 80)
    pictures = [
        Rasterizer(1).render(scene, camera).rgb for scene, camera in ((build_scene(GOOD), here), (moved, there))
    ]
    assert np.abs(pictures[0] - pictures[1]).max() < 0.01
    assert pictures[0].std() > 0.05


def test_a_mesh_at_two_nodes_is_there_twice(tmp_path: Path) -> None:
    document = DOCUMENT | {"scenes": [{"nodes": [0, 1]}], "nodes": [{"mesh": 0}, {"mesh": 0, "translation": [9, 0, 0]}]}
    scene = read(tmp_path, "a.glb", gltf_files.glb(document, BINARY))
    np.testing.assert_allclose(scene.means[300:] - scene.means[:300], [[9, 0, 0]] * 300, atol=1e-5)


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    document = copy.deepcopy(DOCUMENT)
    change(document)
    return gltf_files.glb(document, BINARY)


def primitive(document: dict[str, Any]) -> dict[str, Any]:
    return document["meshes"][0]["primitives"][0]


AT = "meshes.0.primitives.0"
BAD: dict[str, tuple[Callable[[dict[str, Any]], object], str, str]] = {
    "version": (lambda d: d["asset"].update(version="1.0"), "asset.version", "pattern"),
    "required": (lambda d: d.update(extensionsRequired=["KHR_draco"]), "extensionsRequired", "KHR_draco"),
    "no splats": (lambda d: primitive(d).pop("extensions"), "meshes", NAME),
    "mode": (lambda d: primitive(d).update(mode=4), f"{AT}.mode", "must be 0"),
    "kernel": (lambda d: primitive(d)["extensions"][NAME].update(kernel="cube"), f"{AT}.kernel", "ellipse"),
    "linear colour": (
        lambda d: primitive(d)["extensions"][NAME].update(colorSpace="lin_rec709_display"), f"{AT}.colorSpace", "lin"),
    "compressed": (
        lambda d: primitive(d)["extensions"][NAME].update(extensions={"X_spz": {}}), f"{AT}.extensions", "X_spz"),
    "no scale": (lambda d: primitive(d)["attributes"].pop(f"{NAME}:SCALE"), f"{AT}.attributes", "SCALE missing"),
    "half a degree": (
        lambda d: primitive(d)["attributes"].pop(f"{NAME}:SH_DEGREE_2_COEF_3"), f"{AT}.attributes", "of degree 2"),
    "accessor": (
        lambda d: primitive(d)["attributes"].update(POSITION=99), f"{AT}.attributes.POSITION", "there are 20"),
    "counts": (lambda d: d["accessors"][2].update(count=299), f"{AT}.attributes", "299, 300"),
    "all counts": (lambda d: [a.update(count=1 << 39) for a in d["accessors"]], "accessors", "the limit is 1000"),
    "few bytes": (lambda d: [a.update(count=301) for a in d["accessors"]], "accessors.4", "end at"),
    "negative": (lambda d: d["accessors"][0].update(byteOffset=-4), "accessors.0.byteOffset", "greater"),
    "offset": (lambda d: d["accessors"][0].update(byteOffset=8), "accessors.0", "from offset 8"),
    "kind": (lambda d: d["accessors"][1].update(componentType=5125), f"{AT}.attributes.{NAME}:ROTATION", "5125"),
    "shape": (lambda d: d["accessors"][1].update(type="VEC3"), f"{AT}.attributes.{NAME}:ROTATION", "VEC4"),
    "sparse": (lambda d: d["accessors"][3].update(sparse={}), f"{AT}.attributes.{NAME}:OPACITY", "sparse"),
    "no view": (lambda d: d["accessors"][0].pop("bufferView"), "accessors.0.bufferView", "None"),
    "view": (lambda d: d["accessors"][0].update(bufferView=77), "accessors.0.bufferView", "77"),
    "stride": (lambda d: d["bufferViews"][0].update(byteStride=8), "bufferViews.0.byteStride", "12 bytes"),
    "huge stride": (lambda d: d["bufferViews"][0].update(byteStride=99999), "bufferViews.0.byteStride", "252"),
    "view's end": (lambda d: d["bufferViews"][0].update(byteLength=1 << 39), "bufferViews.0", "offset 0"),
    "view's start": (lambda d: d["bufferViews"][0].update(byteOffset=len(BINARY)), "bufferViews.0", "offset"),
    "view's buffer": (lambda d: d["bufferViews"][0].update(buffer=3), "bufferViews.0.buffer", "there are 1"),
    "buffer's length": (lambda d: d["buffers"][0].update(byteLength=len(BINARY) + 1), "buffers.0.byteLength", "but"),
    "buffers' lengths": (lambda d: d["buffers"][0].update(byteLength=1 << 39), "buffers", "the limit is"),
    "second buffer": (lambda d: d["buffers"].append({"byteLength": 4}), "buffers.1.uri", "missing"),
    "not base64": (
        lambda d: d["buffers"][0].update(uri="data:application/octet-stream;base64,%%%"), "buffers.0.uri", "base64"),
    "scene": (lambda d: d.update(scene=4), "scene", "there are 1"),
    "node": (lambda d: d["scenes"][0].update(nodes=[8]), "nodes.8", "not there"),
    "cycle": (lambda d: d["nodes"][0].update(children=[0]), "nodes.0", "two parents"),
    "mesh": (lambda d: d["nodes"][0].update(mesh=5), "nodes.0.mesh", "there are 1"),
    "stretched": (lambda d: d["nodes"][0].update(scale=[1, 2, 1]), "nodes.0", "stretches"),
    "mirrored": (lambda d: d["nodes"][0].update(scale=[1, 1, -1]), "nodes.0", "mirrors"),
    "flat": (lambda d: d["nodes"][0].update(scale=[0, 0, 0]), "nodes.0", "stretches"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_document_is_refused_by_name(tmp_path: Path, case: str) -> None:
    change, field, problem = BAD[case]
    assert problem in refusal(tmp_path, "a.glb", changed(change))[field]


def test_a_bad_container_is_refused_by_offset(tmp_path: Path) -> None:
    good = gltf_files.glb(DOCUMENT, BINARY)
    assert "4 bytes" in refusal(tmp_path, "a.glb", good[:4])["header"]
    assert "version 1" in refusal(tmp_path, "a.glb", good[:4] + b"\1\0\0\0" + good[8:])["header.magic"]
    assert "offset 8" in refusal(tmp_path, "a.glb", good[:-1])["header.length"]
    lying = good[:12] + struct.pack("<I", 1 << 31) + good[16:]
    assert "offset 20" in refusal(tmp_path, "a.glb", lying)["chunk"]
    assert "must be JSON" in refusal(tmp_path, "a.glb", good[:16] + b"JUNK" + good[20:])["chunk"]
    assert "json" in refusal(tmp_path, "a.gltf", b"{" * 5000)
    assert "limit" in refusal(tmp_path, "a.gltf", b"[" + b"[]," * (MAX_JSON_VALUES // 2) + b"[]]")["json"]
