"""A worker that starts again compiles nothing: all kernels come from the disk."""

import subprocess
import sys

DRAW = """
from benchmarks.splats_frames import shipped
from services.splat_worker.rasterizer import Rasterizer, binning, blend, depth_sort, project
ranked = shipped()
camera = ranked.home.camera(64, 48)
for with_depth in (False, True):
    Rasterizer(1).render(ranked.scene, camera, with_depth=with_depth)
kernels = (
    project._project_kernel, project._gather_kernel, depth_sort._radix_pass, binning._count_kernel,
    binning._scatter_kernel, blend._blend_kernel,
)
for kernel in kernels:
    print(len(kernel.signatures), sum(kernel.stats.cache_misses.values()))
"""


def draw() -> list[str]:
    done = subprocess.run([sys.executable, "-c", DRAW], check=True, capture_output=True, text=True)
    return done.stdout.split("\n")[:-1]


def test_a_second_process_compiles_nothing() -> None:
    draw()
    assert draw() == ["1 0", "1 0", "1 0", "1 0", "1 0", "2 0"]
