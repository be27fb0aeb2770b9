"""A kernel that was compiled is used again, and not when a file that it is made of has changed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from services.text_worker.cpu import compiled

PROGRAM = """
import numpy as np
from services.text_worker.cpu import rows
packed, scales = np.zeros((1, 4), np.uint8), np.zeros(1, np.float32)
rows.pack_rows(np.ones((1, 4), np.float32), packed, scales)
print(sum(rows.pack_rows.stats.cache_hits.values()), sum(rows.pack_rows.stats.cache_misses.values()))
"""


@pytest.fixture
def hits_and_misses(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Runs a kernel in a process of its own, from a copy of the package; the copy's folder, and what its cache says."""
    root = Path(compiled.__file__).parents[3]
    folder = tmp_path / "services" / "text_worker" / "cpu"
    shutil.copytree(Path(compiled.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for package in (folder.parent, folder.parents[1]):
        (package / "__init__.py").touch()
    (tmp_path / "headway").symlink_to(root / "headway")

    def run() -> str:
        asked = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=asked, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return folder, run


def test_an_edit_to_any_file_of_the_package_compiles_a_kernel_anew(hits_and_misses) -> None:  # type: ignore[no-untyped-def]
    folder, run = hits_and_misses
    assert run() == "0 1"
    assert run() == "1 0"
    with (folder / "tiles.py").open("a") as file:  # not the kernel's own file
        file.write("\n")
    assert run() == "0 1"
