"""Scene files: .ply (INRIA layout), compressed .ply and SOG 1 and 2 (PlayCanvas), and SPZ 1 to 4.

Every reader checks what the file claims against its size and the limits before anything is allocated or
parsed.
"""

from pathlib import Path

from headway.errors import BadInput
from services.splat_worker.readers.ply import read_ply
from services.splat_worker.readers.sog import read_sog
from services.splat_worker.readers.spz import read_spz
from services.splat_worker.scene import Scene, SceneLimits, build_scene

SUFFIXES = (".ply", ".spz", ".sog")


def read_scene(path: Path, limits: SceneLimits) -> Scene:
    """Read, check and clean a scene file.

    Blocks. Raises BadInput naming the field and byte offset or member for files that are truncated, lie about
    themselves, exceed the limits or hold nothing drawable; OSError when the file cannot be read.
    """
    size = path.stat().st_size
    if size > limits.max_file_bytes:
        raise BadInput("file", f"{size} bytes; the limit is {limits.max_file_bytes}")
    readers = {".ply": read_ply, ".spz": read_spz, ".sog": read_sog}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise BadInput("file", f"suffix '{path.suffix}' is not one of {', '.join(SUFFIXES)}")
    scene = build_scene(reader(path, limits))
    if scene.count == 0:
        raise BadInput("vertex", f"no gaussian can be drawn; {scene.dropped} were dropped as not finite or degenerate")
    return scene
