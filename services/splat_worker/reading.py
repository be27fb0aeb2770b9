"""Reads a scene file in a process of its own: decoders hold the interpreter for as long as they run, which would hold
up frames, and one that crashes must not take the worker with it.

`python -m services.splat_worker.reading FILE MAX_GAUSSIANS MAX_FILE_BYTES OUT` is that process: it writes the scene's
arrays into OUT and prints the rest, or what is wrong with the file, as one JSON object.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from headway.errors import BadInput
from services.splat_worker.readers import read_scene
from services.splat_worker.scene import ARRAY_NAMES, Scene, SceneLimits

_LOOK_S = 0.02
_NICENESS = 10
_MOST_SAID = 500


class Stopped(Exception):
    """The worker ends; the load with it."""


def read_apart(path: Path, limits: SceneLimits, stopping: threading.Event) -> Scene:
    """As `read_scene`, in a process. Blocks, and raises BadInput, OSError, and Stopped once `stopping` is set."""
    path.stat()  # a file that is not there is the caller's OSError, not the reader's
    with tempfile.TemporaryDirectory(prefix="headway-scene-") as folder:
        out = Path(folder) / "arrays.npy"
        arguments = (str(path), str(limits.max_gaussians), str(limits.max_file_bytes), str(out))
        told = _run((sys.executable, "-m", "services.splat_worker.reading", *arguments), path, stopping)
        if "violations" in told:
            raise BadInput(told["violations"])
        with out.open("rb") as file:
            arrays = {name: np.load(file, allow_pickle=False) for name in ARRAY_NAMES}
    for array in arrays.values():
        array.setflags(write=False)
    return Scene(**arrays, scene_id=told["scene_id"], dropped=told["dropped"])


def _run(command: tuple[str, ...], path: Path, stopping: threading.Event) -> dict[str, Any]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            if stopping.wait(_LOOK_S):
                process.kill()
                raise Stopped
        said, complaint = process.communicate()
    if process.returncode != 0:
        raise BadInput(
            "file", f"reading {path.name} ended with {process.returncode}: {complaint[-_MOST_SAID:].strip()}"
        )
    told: dict[str, Any] = json.loads(said)
    return told


def main(path: str, max_gaussians: str, max_file_bytes: str, out: str) -> None:
    """The process."""
    os.nice(_NICENESS)
    try:
        scene = read_scene(Path(path), SceneLimits(int(max_gaussians), int(max_file_bytes)))
    except BadInput as error:
        print(json.dumps({"violations": error.violations}))
        return
    with open(out, "wb") as file:
        for name in ARRAY_NAMES:
            np.save(file, getattr(scene, name), allow_pickle=False)
    print(json.dumps({"scene_id": scene.scene_id, "dropped": scene.dropped}))


if __name__ == "__main__":
    main(*sys.argv[1:])
