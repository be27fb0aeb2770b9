"""Scene files written: .ply, compressed .ply and SPZ by gsply, .splat and .glb by ours."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from headway.errors import BadInput
from services.splat_worker.scene import Scene
from services.splat_worker.writers.glb import write_glb
from services.splat_worker.writers.logarithmic import write_compressed_ply, write_ply, write_spz
from services.splat_worker.writers.splat import write_splat

Writer = Callable[[Path, Scene], None]

WRITERS: Mapping[str, Writer] = {
    ".compressed.ply": write_compressed_ply,
    ".ply": write_ply,
    ".spz": write_spz,
    ".splat": write_splat,
    ".glb": write_glb,
}


NO_HARMONICS = frozenset({".splat"})
"""Formats that hold plain colours alone."""


def writer_of(path: Path) -> tuple[str, Writer]:
    """The suffix and the writer for a file's name. Raises BadInput that lists what can be written."""
    for suffix, writer in WRITERS.items():
        if path.name.lower().endswith(suffix):
            return suffix, writer
    raise BadInput("file", f"{path.name!r} cannot be written; its name must end in {', '.join(WRITERS)}")


def write_scene(path: Path, scene: Scene) -> None:
    """Write `scene` in the format of the name, aside and moved into place: a reader never sees half a file. Blocks."""
    suffix, writer = writer_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}{suffix}")
    try:
        writer(aside, scene)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
