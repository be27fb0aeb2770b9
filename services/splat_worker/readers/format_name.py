"""Which format, and which version of it, a scene file is in, in words."""

import gzip
from pathlib import Path

from services.splat_worker.readers.gltf import has_log_scales
from services.splat_worker.readers.sog_archive import open_archive, read_member
from services.splat_worker.readers.sog_meta import MAX_META_BYTES, SogMeta, parse_meta
from services.splat_worker.scene import SceneLimits

_HEAD_BYTES = 64 * 1024


def format_name(path: Path, limits: SceneLimits) -> str:
    """Of a file that could be read."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    match path.suffix.lower():
        case ".ply":
            return "compressed ply" if b"\nelement chunk " in head else "ply"
        case ".spz":
            return f"spz {_spz_version(path, head)}"
        case ".sog":
            return f"sog {_sog_version(path, limits)}"
        case ".ksplat":
            return f"ksplat {head[0]}.{head[1]}, mode {head[20]}"
        case ".glb" | ".gltf":
            return "glTF draft with logarithms of scales" if has_log_scales(path, limits) else "glTF"
        case suffix:
            return suffix.lstrip(".")


def _spz_version(path: Path, head: bytes) -> int:
    if not head.startswith(b"\x1f\x8b"):
        return int.from_bytes(head[4:8], "little")
    with gzip.open(path) as file:
        return int.from_bytes(file.read(8)[4:], "little")


def _sog_version(path: Path, limits: SceneLimits) -> int:
    with path.open("rb") as file, open_archive(file) as archive:
        meta = parse_meta(read_member(archive, "meta.json", MAX_META_BYTES), limits.max_gaussians)
    return 2 if isinstance(meta, SogMeta) else 1
