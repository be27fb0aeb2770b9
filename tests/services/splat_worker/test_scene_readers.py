"""Readers: what good files say, and that bad ones are refused by name without crashing or eating memory."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import scene_files
from reading import close_to, read, refusal

from headway.errors import BadInput
from services.splat_worker.readers import read_scene
from services.splat_worker.scene import Gaussians, SceneLimits, build_scene

GOOD = scene_files.gaussians()


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_ply_is_read_exactly(tmp_path: Path, degree: int) -> None:
    truth = scene_files.gaussians(degree=degree)
    scene = read(tmp_path, "a.ply", scene_files.ply_bytes(truth, comments="comment by hand\n"))
    close_to(scene, truth, means=0, scales=1e-5, sh=0)
    assert scene.sh_degree == degree


def test_compressed_ply_is_read(tmp_path: Path) -> None:
    data = scene_files.write_compressed_ply(tmp_path / "a.compressed.ply", GOOD)
    close_to(read(tmp_path, "a.compressed.ply", data), GOOD, means=0.004, scales=0.01, sh=0.03)


@pytest.mark.parametrize("version", [3, 4])
def test_spz_is_read(tmp_path: Path, version: int) -> None:
    data = scene_files.write_spz(tmp_path / "a.spz", GOOD, version)
    close_to(read(tmp_path, "a.spz", data), GOOD, means=1e-4, scales=0.04, sh=0.02)


def test_formats_agree_on_what_a_scene_is(tmp_path: Path) -> None:
    ply = read(tmp_path, "a.ply", scene_files.ply_bytes(GOOD))
    again = read(tmp_path, "b.PLY", scene_files.ply_bytes(GOOD, comments="comment other bytes\n"))
    other = read(tmp_path, "c.ply", scene_files.ply_bytes(scene_files.gaussians(seed=1)))
    assert ply.scene_id == again.scene_id != other.scene_id


def test_gaussians_that_cannot_be_drawn_are_dropped_and_counted() -> None:
    arrays = {name: getattr(GOOD, name).copy() for name in ("means", "quats", "scales", "opacities", "sh")}
    arrays["means"][0, 1] = np.nan
    arrays["quats"][1] = 0
    arrays["scales"][2, 0] = np.inf
    arrays["opacities"][3] = np.nan
    arrays["sh"][4, 7, 2] = -np.inf
    arrays["means"][5] = 3e38
    scene = build_scene(Gaussians(**arrays))
    assert (scene.dropped, scene.count) == (6, len(GOOD.means) - 6)
    np.testing.assert_array_equal(scene.means, GOOD.means[6:])


def test_a_file_with_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    truth = scene_files.gaussians(count=3)
    truth.means[:] = np.nan
    assert "3 were dropped" in refusal(tmp_path, "a.ply", scene_files.ply_bytes(truth))["vertex"]


PLY = scene_files.ply_bytes(GOOD)
BAD_PLY: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "file", "empty"),
    "not ply": (b"PK\x03\x04" + PLY, "header", "no 'ply' line"),
    "endless header": (b"ply\n" + b"comment x\n" * 10_000, "header", "end_header"),
    "not ascii": (PLY.replace(b"element", b"\xffelement"), "header", "offset"),
    "ascii": (PLY.replace(b"binary_little_endian", b"ascii"), "header.format", "binary_little_endian"),
    "big endian": (PLY.replace(b"binary_little", b"binary_big"), "header.format", "binary_little_endian"),
    "truncated": (PLY[:-1], "element vertex", f"but the file has {len(PLY) - 1} bytes"),
    "lying count": (PLY.replace(b"vertex 300", b"vertex 301"), "element vertex", "301 rows"),
    "hostile count": (PLY.replace(b"vertex 300", b"vertex 999999999999"), "element vertex", "the limit is 1000"),
    "endless count": (PLY.replace(b"vertex 300", b"vertex " + b"9" * 400), "element vertex", "12 digits"),
    "negative count": (PLY.replace(b"vertex 300", b"vertex -1"), "element vertex", "whole number"),
    "list": (PLY.replace(b"property float x", b"property list uchar int x"), "header", "only scalar"),
    "missing": (PLY.replace(b"property float opacity", b"property float opaqueness"), "property opacity", "missing"),
    "twice": (PLY.replace(b"property float nx", b"property float x"), "element vertex", "not unique"),
    "2D": (PLY.replace(b"property float scale_2", b"property float other"), "scale_2", "2D"),
    "odd SH": (PLY.replace(b"property float f_rest_44", b"property float other"), "f_rest", "44 properties"),
}


@pytest.mark.parametrize("case", BAD_PLY)
def test_a_bad_ply_is_refused_by_name(tmp_path: Path, case: str) -> None:
    data, field, problem = BAD_PLY[case]
    violations = refusal(tmp_path, "a.ply", data)
    assert problem in violations[field]


def test_a_compressed_ply_whose_parts_disagree_is_refused(tmp_path: Path) -> None:
    data = scene_files.write_compressed_ply(tmp_path / "a.ply", GOOD)
    assert b"element chunk 2\n" in data
    few = data.replace(b"element chunk 2\n", b"element chunk 1\n")
    assert "does not fit" in refusal(tmp_path, "a.ply", few)["element chunk"]
    odd = data.replace(b"property uint packed_scale", b"property int packed_scale")
    assert "element vertex" in refusal(tmp_path, "a.ply", odd)
    assert "element sh" in refusal(tmp_path, "a.ply", data[:-1])


def test_a_bad_spz_4_is_refused_by_name(tmp_path: Path) -> None:
    data = scene_files.write_spz(tmp_path / "a.spz", GOOD, version=4)
    put = scene_files.put_u32
    assert "limit is 1000" in refusal(tmp_path, "a.spz", put(data, 8, 1 << 31))["header.num_points"]
    assert "must be one of" in refusal(tmp_path, "a.spz", put(data, 4, 9))["header.version"]
    assert "header.magic" in refusal(tmp_path, "a.spz", b"junk" + data[4:])
    assert "header.toc_byte_offset" in refusal(tmp_path, "a.spz", put(data, 16, len(data)))
    assert "toc" in refusal(tmp_path, "a.spz", data[:-1])
    assert "toc" in refusal(tmp_path, "a.spz", put(data, 8, 299))
    assert "header" in refusal(tmp_path, "a.spz", data[:10])


def test_a_bad_gzip_spz_is_refused_by_name(tmp_path: Path) -> None:
    data = scene_files.write_spz(tmp_path / "a.spz", GOOD, version=3)
    plain = gzip.decompress(data)
    assert "payload" in refusal(tmp_path, "a.spz", gzip.compress(plain[:-1]))
    assert "payload" in refusal(tmp_path, "a.spz", gzip.compress(plain + bytes(8 << 20)))  # a small bomb
    assert "header.num_points" in refusal(tmp_path, "a.spz", gzip.compress(scene_files.put_u32(plain, 8, 1 << 30)))
    assert "file" in refusal(tmp_path, "a.spz", data[:40] + b"\x00\x00" + data[42:])
    assert "file" in refusal(tmp_path, "a.spz", data + data)


def test_limits_hold_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    path.write_bytes(PLY)
    with pytest.raises(BadInput, match="the limit is 1000"):
        read_scene(path, SceneLimits(max_gaussians=1000, max_file_bytes=1000))
    with pytest.raises(BadInput, match="suffix"):
        read(tmp_path, "a.obj", PLY)
