"""The scene folder: which files are there, by the names of their scenes."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from services.splat_worker.readers import SUFFIXES

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class SceneFile:
    """A file as it was when it was looked at."""

    name: str
    """Of the scene: the file's name without its suffix."""
    path: Path
    stamp: tuple[int, int, int]
    """Time of the last change in ns, bytes, inode: another stamp is another file."""


def scan(folder: Path) -> dict[str, SceneFile]:
    """Scene files by name, in the order of their names; the first file of a name counts. Blocks.

    Hidden files, such as those that are still being copied, are left alone. Raises OSError.
    """
    found: dict[str, SceneFile] = {}
    for path in sorted(folder.iterdir()):
        name = path.name.removesuffix(path.suffix).removesuffix(".compressed")
        if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        if not _NAME.fullmatch(name) or name in found:
            log.debug("%r is left out: its name is taken or not of letters, digits, dot, dash", path.name)
            continue
        status = path.stat()
        found[name] = SceneFile(name, path, (status.st_mtime_ns, status.st_size, status.st_ino))
    return found
