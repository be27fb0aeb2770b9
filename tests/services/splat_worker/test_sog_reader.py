"""SOG: what good files say, and that bad ones are refused by name without crashing or eating memory."""

import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scene_files
import sog_files
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from headway.errors import BadInput
from services.splat_worker.rasterizer import Rasterizer
from services.splat_worker.readers import read_scene
from services.splat_worker.scene import Gaussians, Scene, SceneLimits
from services.splat_worker.views import default_pose, orbit

LIMITS = SceneLimits(max_gaussians=1000, max_file_bytes=4 << 20)
FOREIGN = Path(__file__).parent / "data" / "splat-transform-2.7.1.sog"
SHIPPED = Path(__file__).parents[3] / "models" / "scenes" / "still-life.spz"
GOOD = scene_files.gaussians(count=100, degree=2)
FILES = sog_files.members(GOOD)
PEAK_BYTES = 16 << 20  # more than any file within LIMITS may take, less than any bomb here would
BOMB_BYTES = (64 << 20) + 0x123457


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """Loads gsply's compiled functions, whose memory is no file's."""
    read_scene(FOREIGN, LIMITS)


def read(tmp_path: Path, data: bytes, limits: SceneLimits = LIMITS) -> Scene:
    path = tmp_path / "a.sog"
    path.write_bytes(data)
    return read_scene(path, limits)


def refusal(tmp_path: Path, data: bytes) -> dict[str, str]:
    tracemalloc.start()
    try:
        with pytest.raises(BadInput) as refused:
            read(tmp_path, data)
        assert tracemalloc.get_traced_memory()[1] < PEAK_BYTES
    finally:
        tracemalloc.stop()
    return refused.value.violations


def close_to(scene: Scene, truth: Gaussians, *, means: float, scales: float, sh: float) -> None:
    assert scene.dropped == 0
    np.testing.assert_allclose(scene.means, truth.means, atol=means)
    np.testing.assert_allclose(np.log(scene.scales), np.log(truth.scales), atol=scales)
    np.testing.assert_allclose(scene.opacities, truth.opacities, atol=0.005)
    np.testing.assert_allclose(scene.sh, truth.sh, atol=sh)
    alike = np.abs((scene.quats * truth.quats).sum(axis=1))  # q and -q turn alike
    np.testing.assert_allclose(alike, 1, atol=2e-4)


def test_a_file_that_splat_transform_wrote_is_read() -> None:
    """Version 2.7.1 wrote it with `splat-transform -g cpu` from the .ply of these gaussians.

    It orders gaussians along a curve, so each is sought by its place.
    """
    truth = scene_files.gaussians(count=64, degree=2)
    scene = read_scene(FOREIGN, LIMITS)
    found = np.linalg.norm(scene.means[:, None] - truth.means, axis=2).argmin(axis=1)
    assert sorted(found) == list(range(64))
    arrays = {name: getattr(truth, name)[found] for name in ("means", "quats", "scales", "opacities", "sh")}
    close_to(scene, Gaussians(**arrays), means=2e-4, scales=0.02, sh=0.02)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("version", [1, 2])
def test_sog_is_read(tmp_path: Path, version: int, degree: int) -> None:
    truth = scene_files.gaussians(degree=degree)
    scene = read(tmp_path, sog_files.bundle(sog_files.members(truth, version)))
    close_to(scene, truth, means=2e-4, scales=0.01, sh=0.01)
    assert scene.sh_degree == degree


def test_a_deflated_archive_with_other_files_reads_the_same(tmp_path: Path) -> None:
    stored = read(tmp_path, sog_files.bundle(FILES))
    deflated = read(tmp_path, sog_files.bundle({"readme.txt": b"hello", **FILES}, zipfile.ZIP_DEFLATED))
    assert stored.scene_id == deflated.scene_id


def test_metadata_beside_an_image_is_passed_over(tmp_path: Path) -> None:
    colors = np.array(Image.open(io.BytesIO(FILES["sh0.webp"])))
    extended = sog_files.webp(colors, exif=b"Exif\x00\x00by hand")
    assert b"VP8X" in extended
    assert read(tmp_path, sog_files.bundle({**FILES, "sh0.webp": extended})).count == 100


def test_the_shipped_scene_looks_the_same_from_sog(tmp_path: Path) -> None:
    whole = read_scene(SHIPPED, SceneLimits())
    part = whole.prefix(4000)
    truth = Gaussians(part.means, part.quats, part.scales, part.opacities.clip(1e-6, 1 - 1e-6), part.sh)
    again = read(tmp_path, sog_files.bundle(sog_files.members(truth)), SceneLimits(4000, 4 << 20))
    rasterizer = Rasterizer(threads=1)
    for pose in orbit(default_pose(whole), 3):
        camera = pose.camera(128, 128)
        wanted, got = (rasterizer.render(scene, camera).rgb for scene in (part, again))
        assert wanted.std() > 0.02
        psnr_db = -10 * np.log10(np.mean((wanted - got) ** 2))
        assert psnr_db > 50


def test_gaussians_that_cannot_be_drawn_are_dropped_and_counted(tmp_path: Path) -> None:
    def spoil(meta: dict) -> None:
        meta["scales"]["codebook"][255] = 100.0  # e^100 overflows; the largest scale alone has this code
        meta["means"]["maxs"][0] = 40.0  # e^40 is beyond what can be projected

    scene = read(tmp_path, sog_files.with_meta(FILES, spoil))
    assert scene.dropped >= 2
    assert scene.count + scene.dropped == 100


def change(*path: str | int, to: object) -> bytes:
    def apply(meta: dict) -> None:
        for key in path[:-1]:
            meta = meta[key]
        meta[path[-1]] = to

    return sog_files.with_meta(FILES, apply)


def without(name: str) -> bytes:
    return sog_files.bundle({key: data for key, data in FILES.items() if key != name})


def replaced(name: str, data: bytes) -> bytes:
    return sog_files.bundle({**FILES, name: data})


def resized(name: str, width: int, height: int) -> bytes:
    """The image with another size in its header, as a bomb would have."""
    image = bytearray(FILES[name])
    at = image.index(b"VP8L") + 9
    struct.pack_into("<L", image, at, width - 1 | (height - 1) << 14 | 1 << 28)
    return replaced(name, bytes(image))


CODES = FILES["scales.webp"]
META = "meta.json"
BAD_META: dict[str, tuple[bytes, str, str]] = {
    "not JSON": (replaced(META, b"{"), META, "Invalid JSON"),
    "not an object": (replaced(META, b"[]"), META, "object"),
    "deep": (replaced(META, b"[" * 100_000), META, "recursion limit"),
    "too large": (replaced(META, b" " * 300_000), "member meta.json", "the limit is 262144"),
    "later version": (change("version", to=3), "meta.json version", "must be 2"),
    "version of another type": (change("version", to="2"), "meta.json version", "valid integer"),
    "no count": (sog_files.with_meta(FILES, lambda meta: meta.pop("count")), "meta.json count", "required"),
    "zero": (change("count", to=0), "meta.json count", "greater than or equal to 1"),
    "true": (change("count", to=True), "meta.json count", "valid integer"),
    "fraction": (change("count", to=99.5), "meta.json count", "valid integer"),
    "hostile count": (change("count", to=1 << 100), "meta.json count", "the limit is 1000"),
    "endless count": (
        replaced(META, FILES[META].replace(b'"count": 100', b'"count": ' + b"9" * 5000)),
        META,
        "out of range",
    ),
    "NaN": (change("means", "mins", 1, to=float("nan")), "meta.json means.mins.1", "finite"),
    "infinite": (change("scales", "codebook", 7, to=float("inf")), "meta.json scales.codebook.7", "finite"),
    "null": (change("sh0", "codebook", 0, to=None), "meta.json sh0.codebook.0", "valid number"),
    "beyond float32": (change("sh0", "codebook", 0, to=1e300), "meta.json sh0.codebook.0", "less than"),
    "far": (change("means", "maxs", 2, to=89), "meta.json means.maxs.2", "88"),
    "two axes": (change("means", "maxs", to=[1.0, 2.0]), "meta.json means.maxs.2", "required"),
    "short codebook": (change("scales", "codebook", to=[0.0] * 255), "meta.json scales.codebook", "256"),
    "long codebook": (change("shN", "codebook", to=[0.0] * 257), "meta.json shN.codebook", "256"),
    "bands": (change("shN", "bands", to=4), "meta.json shN.bands", "less than or equal to 3"),
    "lying bands": (change("shN", "bands", to=3), "meta.json shN.bands", "has 2"),
    "lying palette": (change("shN", "count", to=129), "meta.json shN.count", "room for 128"),
    "hostile palette": (change("shN", "count", to=1 << 40), "meta.json shN.count", "65536"),
    "path": (change("quats", "files", to=["../../etc/passwd"]), "meta.json quats.files.0", "match"),
    "absolute path": (change("quats", "files", to=["/etc/passwd"]), "meta.json quats.files.0", "match"),
    "no such file": (change("quats", "files", to=["q.webp"]), "member q.webp", "missing"),
    "one file for two": (change("means", "files", to=["means_l.webp"]), "meta.json means.files.1", "required"),
    "meta as image": (change("quats", "files", to=[META]), "member meta.json", "not a WebP image"),
}
BAD_MEMBERS: dict[str, tuple[bytes, str, str]] = {
    "no meta": (without(META), "member meta.json", "missing"),
    "no image": (without("sh0.webp"), "member sh0.webp", "missing"),
    "path": (replaced("../evil.webp", b"x"), "zip directory", "must match"),
    "folder": (replaced("folder/", b""), "zip directory", "must match"),
    "many": (sog_files.bundle({f"{i}": b"" for i in range(40)} | FILES), "zip end record", "the limits are 32"),
    "bzip2": (sog_files.bundle(FILES, zipfile.ZIP_BZIP2), "member meta.json", "method 12"),
    "bomb": (
        sog_files.bundle({**FILES, "quats.webp": bytes(BOMB_BYTES)}, zipfile.ZIP_DEFLATED),
        "member quats.webp",
        "the limit is",
    ),
    "not WebP": (replaced("quats.webp", b"GIF89a" + bytes(30)), "member quats.webp", "not a WebP image"),
    "empty": (replaced("quats.webp", b""), "member quats.webp", "not a WebP image"),
    "cut image": (replaced("scales.webp", CODES[:-3]), "member scales.webp", "not a WebP image"),
    "cut chunk": (
        replaced("scales.webp", CODES[:16] + struct.pack("<L", 1 << 31) + CODES[20:]),
        "member scales.webp",
        "claims 2147483648 bytes",
    ),
    "lossy": (
        replaced("scales.webp", sog_files.webp(np.zeros((10, 10, 3), np.uint8), lossless=False)),
        "member scales.webp",
        "lossless",
    ),
    "damaged image": (replaced("scales.webp", CODES[:40] + bytes(len(CODES) - 40)), "file", "damaged SOG"),
    "huge image": (resized("means_u.webp", 16384, 16384), "member means_u.webp", "must be 100 to"),
    "few pixels": (resized("means_u.webp", 9, 11), "member means_u.webp", "must be 100 to"),
    "other shape": (resized("quats.webp", 20, 5), "member quats.webp", "means_l.webp's size"),
    "odd palette": (resized("shN_centroids.webp", 500, 2), "member shN_centroids.webp", "must be one of"),
    "high palette": (resized("shN_centroids.webp", 512, 1025), "member shN_centroids.webp", "1024 high"),
}


@pytest.mark.parametrize("case", BAD_META)
def test_a_bad_meta_is_refused_by_name(tmp_path: Path, case: str) -> None:
    data, field, problem = BAD_META[case]
    assert problem in refusal(tmp_path, data)[field]


@pytest.mark.parametrize("case", BAD_MEMBERS)
def test_bad_members_are_refused_by_name(tmp_path: Path, case: str) -> None:
    data, field, problem = BAD_MEMBERS[case]
    assert problem in refusal(tmp_path, data)[field]


def test_an_archive_that_lies_is_refused(tmp_path: Path) -> None:
    data = sog_files.bundle(FILES)
    assert "truncated" in refusal(tmp_path, data[:-1])["zip end record"]
    assert "truncated" in refusal(tmp_path, data[: len(data) // 2])["zip end record"]
    assert "22" in refusal(tmp_path, b"PK\x05\x06")["zip end record"]
    assert "limits" in refusal(tmp_path, data[:-10] + struct.pack("<L", 1 << 31) + data[-6:])["zip end record"]
    assert "member meta.json" in refusal(tmp_path, data[:-6] + struct.pack("<L", 1 << 31) + data[-2:])
    assert "zip directory" in refusal(tmp_path, data[:-10] + struct.pack("<L", 400) + data[-6:])
    assert "ZIP64" in refusal(tmp_path, data[:-22] + b"PK\x06\x07" + bytes(16) + data[-22:])["zip end record"]
    twice = data.replace(b"means_u.webp", b"means_l.webp")
    assert "twice" in refusal(tmp_path, twice)["zip directory"]


def test_a_member_that_inflates_beyond_its_claim_is_refused(tmp_path: Path) -> None:
    """zipfile alone would inflate all of it before it cut to the claimed size."""
    data = sog_files.bundle({**FILES, "quats.webp": bytes(BOMB_BYTES)}, zipfile.ZIP_DEFLATED)
    assert data.count(struct.pack("<L", BOMB_BYTES)) == 2
    lying = data.replace(struct.pack("<L", BOMB_BYTES), struct.pack("<L", 400))
    assert "damaged zip file" in refusal(tmp_path, lying)["member quats.webp"]


def damage(data: st.DataObject, whole: bytes) -> bytes:
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(damaged), 60) - 1) | st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    return bytes(damaged[: data.draw(st.just(len(damaged)) | st.integers(0, len(damaged)))])


def damaged_bundle(data: st.DataObject) -> bytes:
    return damage(data, sog_files.bundle(FILES, data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))))


def damaged_member(data: st.DataObject) -> bytes:
    """With a checksum that fits, as an attacker would have it."""
    name = data.draw(st.sampled_from(sorted(FILES)))
    return replaced(name, damage(data, FILES[name]))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), make=st.sampled_from([damaged_bundle, damaged_member]))
def test_damaged_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, make: Callable[[st.DataObject], bytes]
) -> None:
    tracemalloc.start()
    try:
        scene = read(tmp_path_factory.getbasetemp(), make(data))
    except BadInput:
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < PEAK_BYTES
    assert 1 <= scene.count <= LIMITS.max_gaussians
    assert all(np.isfinite(getattr(scene, part)).all() for part in ("means", "quats", "scales", "opacities", "sh"))
