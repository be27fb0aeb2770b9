"""Scene files: .ply (INRIA layout), compressed .ply and SOG 1 and 2 (PlayCanvas), SPZ 1 to 4, .splat, .ksplat, and
glTF with KHR_gaussian_splatting.

Every reader checks what the file claims against its size and the limits before anything is allocated or
parsed.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from headway.errors import BadInput
from services.splat_worker.readers.gltf import read_gltf
from services.splat_worker.readers.ksplat import read_ksplat
from services.splat_worker.readers.ply import read_ply
from services.splat_worker.readers.sog import read_sog
from services.splat_worker.readers.splat import read_splat
from services.splat_worker.readers.spz import read_spz
from services.splat_worker.scene import Gaussians, Scene, SceneLimits, build_scene

Reader = Callable[[Path, SceneLimits], Gaussians]

READERS: Mapping[str, Reader] = {
    ".ply": read_ply,
    ".spz": read_spz,
    ".sog": read_sog,
    ".splat": read_splat,
    ".ksplat": read_ksplat,
    ".glb": read_gltf,
    ".gltf": read_gltf,
}
SUFFIXES = tuple(READERS)
Y_UP_SUFFIXES = (".spz", ".glb", ".gltf")
"""Formats whose axes are right, up, back. The others keep the training's: right, down, forward."""


def up_of(path: Path) -> tuple[float, float, float]:
    """Which way is up in a file of this format, by the format's convention."""
    return (0.0, 1.0, 0.0) if path.suffix.lower() in Y_UP_SUFFIXES else (0.0, -1.0, 0.0)


def read_scene(path: Path, limits: SceneLimits) -> Scene:
    """Read, check and clean a scene file.

    Blocks. Raises BadInput naming the field and byte offset or member for files that are truncated, lie about
    themselves, exceed the limits or hold nothing drawable; OSError when the file cannot be read.
    """
    size = path.stat().st_size
    if size > limits.max_file_bytes:
        raise BadInput("file", f"{size} bytes; the limit is {limits.max_file_bytes}")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise BadInput("file", f"suffix '{path.suffix}' is not one of {', '.join(SUFFIXES)}")
    scene = build_scene(reader(path, limits))
    if scene.count == 0:
        raise BadInput("vertex", f"no gaussian can be drawn; {scene.dropped} were dropped as not finite or degenerate")
    return scene
