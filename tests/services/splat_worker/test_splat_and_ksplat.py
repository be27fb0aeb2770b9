"""The readers of .splat and .ksplat."""

import struct
from pathlib import Path

import ksplat_files
import numpy as np
import pytest
import scene_files
from reading import close_to, read, refusal

from services.splat_worker.scene import SH_COEFFICIENTS, build_scene
from services.splat_worker.writers import write_scene

GOOD = scene_files.gaussians()
FLAT = scene_files.gaussians(degree=0)
TOLERANCE = {0: (1e-6, 1e-6, 1e-6), 1: (1e-4, 2e-3, 1e-3), 2: (1e-4, 2e-3, 5e-3)}  # means, scales, harmonics


def splat_bytes(count: int = 300) -> bytes:
    """Records by hand: position, linear scales, RGBA, rotation wxyz in steps of 1/128 around 128."""
    scene = scene_files.gaussians(count, degree=0)
    color = np.round(255 * (0.5 + 0.28209479177387814 * scene.sh[:, 0])).clip(0, 255)
    return b"".join(
        struct.pack("<6f8B", *scene.means[row], *scene.scales[row], *color[row].astype(int),
                    round(255 * scene.opacities[row]), *np.round(128 + 127 * scene.quats[row]).astype(int))
        for row in range(count)
    )  # fmt: skip


def test_splat_is_read(tmp_path: Path) -> None:
    scene = read(tmp_path, "a.splat", splat_bytes())
    close_to(scene, FLAT, means=0, scales=1e-6, sh=0.01)
    assert scene.sh_degree == 0


def test_splat_is_written_as_it_is_read(tmp_path: Path) -> None:
    write_scene(tmp_path / "a.splat", build_scene(FLAT))
    close_to(read(tmp_path, "b.splat", (tmp_path / "a.splat").read_bytes()), FLAT, means=0, scales=1e-6, sh=0.01)


def test_a_bad_splat_is_refused_by_offset(tmp_path: Path) -> None:
    assert "0 bytes" in refusal(tmp_path, "a.splat", b"")["file"]
    assert "9568" in refusal(tmp_path, "a.splat", splat_bytes()[:-1])["file"]
    assert "the limit is 1000" in refusal(tmp_path, "a.splat", splat_bytes(1001))["file"]


def test_gaussians_without_a_rotation_are_dropped(tmp_path: Path) -> None:
    data = bytearray(splat_bytes(4))
    data[28:32] = bytes([128] * 4)
    data[32:36] = struct.pack("<f", float("nan"))
    scene = read(tmp_path, "a.splat", bytes(data))
    assert (scene.count, scene.dropped) == (2, 2)


@pytest.mark.parametrize("sections", [1, 3])
@pytest.mark.parametrize("degree", range(4))
@pytest.mark.parametrize("mode", range(3))
def test_ksplat_is_read(tmp_path: Path, mode: int, degree: int, sections: int) -> None:
    truth = scene_files.gaussians(150, degree)
    scene = read(tmp_path, "a.ksplat", ksplat_files.ksplat_bytes(truth, mode, sections))
    means, scales, harmonics = TOLERANCE[mode]
    assert scene.sh.shape[1] == SH_COEFFICIENTS[degree]
    np.testing.assert_allclose(scene.sh[:, 0], truth.sh[:, 0], atol=0.01)
    np.testing.assert_allclose(scene.sh[:, 1:], truth.sh[:, 1:], atol=harmonics)
    close_to(scene, truth, means=means, scales=scales, sh=0.01)


def put(data: bytes, offset: int, layout: str, value: float) -> bytes:
    packed = struct.pack(layout, value)
    return data[:offset] + packed + data[offset + len(packed) :]


KSPLAT = ksplat_files.ksplat_bytes(GOOD, mode=1)
HUGE = 0xFFFFFFFF
NAN = float("nan")
BAD_KSPLAT: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "header", "4096"),
    "version": (put(KSPLAT, 1, "<B", 2), "header.version", "offset 0"),
    "sections": (put(KSPLAT, 4, "<I", HUGE), "header.max_section_count", "offset 4"),
    "no sections": (put(KSPLAT, 4, "<I", 0), "header.max_section_count", "offset 4"),
    "count": (put(KSPLAT, 16, "<I", HUGE), "header.splat_count", "the limit is 1000"),
    "lying count": (put(KSPLAT, 16, "<I", 299), "header.splat_count", "the sections hold 300"),
    "mode": (put(KSPLAT, 20, "<H", 3), "header.compression_level", "offset 20"),
    "range": (put(KSPLAT, 36, "<f", NAN), "header.min_sh_coeff", "offset 36"),
    "section count": (put(KSPLAT, 4096, "<I", 301), "section 0.splat_count", "room for 300"),
    "section room": (put(KSPLAT, 4100, "<I", HUGE), "section 0", f"the file has {len(KSPLAT)} bytes"),
    "buckets": (put(KSPLAT, 4108, "<I", HUGE), "section 0", "ends at offset"),
    "few buckets": (put(KSPLAT, 4108, "<I", 1), "section 0.bucket_count", "offset 4108"),
    "block": (put(KSPLAT, 4112, "<f", NAN), "section 0.bucket_block_size", "offset 4112"),
    "centers": (put(KSPLAT, 4116, "<H", 4), "section 0.bucket_storage_bytes", "offset 4116"),
    "short buckets": (put(KSPLAT, 4104, "<I", 1), "partly filled buckets", "of 300"),
    "full buckets": (put(KSPLAT, 4128, "<I", HUGE), "section 0.bucket_count", "are full"),
    "degree": (put(KSPLAT, 4136, "<H", 4), "section 0.sh_degree", "offset 4136"),
    "truncated": (KSPLAT[:-1], "section 0", "ends at offset"),
}


@pytest.mark.parametrize("case", BAD_KSPLAT)
def test_a_bad_ksplat_is_refused_by_name(tmp_path: Path, case: str) -> None:
    data, field, problem = BAD_KSPLAT[case]
    assert problem in refusal(tmp_path, "a.ksplat", data)[field]
