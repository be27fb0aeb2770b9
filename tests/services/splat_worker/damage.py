"""Damages scene files of every format and reads them; as a script, within a limit of memory.

`python damage.py SUFFIX COUNT SEED` reads COUNT damaged files and prints how many were read and how many refused.
"""

import gzip
import json
import random
import resource
import struct
import sys
import tempfile
from pathlib import Path

import gltf_files
import ksplat_files
import numpy as np
import scene_files
import sog_files

from headway.errors import BadInput
from services.splat_worker.readers import read_scene
from services.splat_worker.scene import SceneLimits, build_scene
from services.splat_worker.writers import write_scene

LIMITS = SceneLimits(max_gaussians=1000, max_file_bytes=1 << 20)
MEMORY_BYTES = 1 << 30
HEAD_BYTES = 400
_LIES = (0, 1, 2, 255, 256, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
_LAYOUTS = ("<B", "<H", "<I", ">I", "<Q")
_WORDS = (b"-1", b"0", b"1e308", b"99999999999999999999", b"null", b'"x"', b"[]", b"{}", b"NaN", b"0.5")


def good_files() -> dict[str, bytes]:
    """A small file of every format and version."""
    truth = scene_files.gaussians(count=40, degree=1)
    document = gltf_files.document(gltf_files.arrays(truth))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scene(folder / "a.splat", build_scene(truth))
        return {
            "a.ply": scene_files.ply_bytes(truth),
            "a.compressed.ply": scene_files.write_compressed_ply(folder / "a.compressed.ply", truth),
            "spz3.spz": scene_files.write_spz(folder / "c.spz", truth, 3),
            "spz4.spz": scene_files.write_spz(folder / "d.spz", truth, 4),
            "sog1.sog": sog_files.bundle(sog_files.members(truth, 1)),
            "sog2.sog": sog_files.bundle(sog_files.members(truth, 2)),
            "a.splat": (folder / "a.splat").read_bytes(),
            "mode0.ksplat": ksplat_files.ksplat_bytes(truth, 0, 2),
            "mode1.ksplat": ksplat_files.ksplat_bytes(truth, 1),
            "mode2.ksplat": ksplat_files.ksplat_bytes(truth, 2),
            "a.glb": gltf_files.glb(*document),
            "a.gltf": gltf_files.gltf(*document),
        }


def damaged(data: bytes, chance: random.Random) -> bytes:
    """One to four of: other bytes, lying numbers, other words, pieces cut out, doubled or moved; perhaps cut off."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = _place(found, chance)
        match chance.randrange(5):
            case 0:
                found[at] = chance.randrange(256)
            case 1:
                layout = chance.choice(_LAYOUTS)
                size = struct.calcsize(layout)
                value = chance.choice(_LIES) & (256**size - 1)
                found[at : at + size] = struct.pack(layout, value)
            case 2:
                del found[at : at + chance.randint(1, 64)]
            case 3:
                start = _place(found, chance)
                found[at:at] = found[start : start + chance.randint(1, 64)]
            case 4:
                _other_number(found, at, chance)
        if not found:
            return b""
    return bytes(found[: chance.randrange(len(found))] if chance.random() < 0.2 else found)


def damaged_file(name: str, data: bytes, chance: random.Random) -> bytes:
    """As `damaged`; where a file is packed as a whole, mostly inside the packing."""
    if name == "spz3.spz" and chance.random() < 0.8:
        return gzip.compress(damaged(gzip.decompress(data), chance), compresslevel=1, mtime=0)
    return damaged(data, chance)


def _place(data: bytearray, chance: random.Random) -> int:
    """Headers are where lies are told: most of the damage goes there."""
    return chance.randrange(min(len(data), HEAD_BYTES) if chance.random() < 0.6 else len(data))


def _other_number(data: bytearray, at: int, chance: random.Random) -> None:
    """Puts another word in the place of the next number in text, as in a header or in JSON."""
    digits = b"0123456789"
    start = next((i for i in range(at, min(at + 200, len(data))) if data[i] in digits), None)
    if start is not None:
        end = next((i for i in range(start, len(data)) if data[i] not in digits), len(data))
        data[start:end] = chance.choice(_WORDS)


def check(path: Path, data: bytes) -> bool:
    """Whether `data` is read, and as what is safe to render; False when it is refused, by a name and in words."""
    path.write_bytes(data)
    try:
        scene = read_scene(path, LIMITS)
    except BadInput as refusal:
        _check_refusal(refusal.violations)
        return False
    assert 1 <= scene.count <= LIMITS.max_gaussians
    for name in ("means", "quats", "scales", "opacities", "sh"):
        assert np.isfinite(getattr(scene, name)).all(), name
    return True


def _check_refusal(violations: dict[str, str]) -> None:
    assert violations
    for field, problem in violations.items():
        assert field.strip() and problem.strip()
        assert "allocate" not in problem and "emory" not in problem, problem


def main(name: str, count: int, seed: int) -> None:
    good, chance = good_files()[name], random.Random(seed)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY_BYTES, resource.RLIM_INFINITY))
    with tempfile.TemporaryDirectory() as folder:
        assert check(Path(folder) / name, good)
        read = 0
        for number in range(count):
            data = damaged_file(name, good, chance)
            try:
                read += check(Path(folder) / name, data)
            except BaseException as error:
                raise AssertionError(f"{name}, seed {seed}, file {number}: {type(error).__name__}: {error}") from error
    print(json.dumps({"read": read, "refused": count - read}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
