"""Frames on a CUDA device, and gangs of them: a gang is one launch. What follows a picture runs on the host's cores."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import gsplat
import numpy as np
import torch

from headway.errors import BadInput
from services.splat_worker.camera import look_at
from services.splat_worker.gsplat_rasterizer import DeviceScene, TooManyPairs, View, render
from services.splat_worker.rasterizer import Picture, Rasterizer
from services.splat_worker.renderer import Exposure
from services.splat_worker.scene import Gaussians, Scene, build_scene

T = TypeVar("T")
GANG_SIZES = (2, 4, 8)


def likeness_db(device: torch.device) -> float:
    """PSNR of a small frame of a few splats, drawn on a device, to the same by our own rasteriser. Raises whatever
    keeps gsplat's kernels from running."""
    rng = np.random.default_rng(0)
    shapes = {"means": 3, "quats": 4, "scales": 3}
    arrays = {name: rng.normal(size=(64, width)).astype(np.float32) for name, width in shapes.items()}
    arrays["scales"] = np.exp(0.5 * arrays["scales"] - 2)
    opacities, sh = rng.uniform(0.1, 0.9, 64), 0.2 * rng.normal(size=(64, 16, 3))
    scene = build_scene(Gaussians(**arrays, opacities=opacities.astype(np.float32), sh=sh.astype(np.float32)))
    camera = look_at((0, 0, -4), (0, 0, 0), (0, -1, 0), 50, 64, 64)
    (picture,) = render(DeviceScene.of(scene, device), [View(camera)])
    error = float(np.mean((picture.rgb - Rasterizer(1).render(scene, camera).rgb) ** 2))
    return float(-10 * np.log10(max(error, 1e-20)))


class GsplatRenderer:
    """A `Renderer` over gsplat. It draws in one go: a rung is final when the launch begins."""

    gang_sizes = GANG_SIZES

    def __init__(self, device: torch.device, threads: int) -> None:
        self._device, self.threads = device, threads
        self.engine, self.device = f"gsplat-{device.type}", str(device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
        self.build = f"gsplat {gsplat.__version__}, torch {torch.__version__}, {name}"
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="develop")

    def beside_bytes(self, scene: Scene) -> int:
        """As much again as on the host."""
        return scene.memory_bytes

    def place(self, scene: Scene) -> DeviceScene:
        """A copy on the device. Raises BadInput when its memory does not hold it."""
        try:
            return DeviceScene.of(scene, self._device)
        except torch.cuda.OutOfMemoryError:
            raise BadInput("scene", f"takes {scene.memory_bytes} bytes; {self.device} has not that much left") from None

    def draw(self, exposures: Sequence[Exposure[T]]) -> list[T | BadInput]:
        """See `Renderer`; a view is too complex by the pairs of gaussian and tile. A gang that is too much for one
        launch, though none of its frames may be, is drawn one by one."""
        try:
            pictures = _launch(exposures)
        except TooManyPairs as error:
            return [error] if len(exposures) == 1 else [self.draw([each])[0] for each in exposures]
        return list(self._pool.map(_finished, exposures, pictures))

    def close(self) -> None:
        """Ends the threads that finish pictures."""
        self._pool.shutdown()


def _launch(exposures: Sequence[Exposure[T]]) -> list[Picture]:
    spec, rung = exposures[0].spec, exposures[0].rung
    placed = spec.scene.placed
    assert isinstance(placed, DeviceScene)  # this renderer placed the scene
    level = placed.prefix(spec.scene.ranked.count(rung))
    views = [View(each.spec.camera_at(rung), each.spec.background) for each in exposures]
    return render(level, views, spec.sh_degree, spec.antialiased, spec.with_depth)


def _finished(exposure: Exposure[T], picture: Picture) -> T | BadInput:
    try:
        return exposure.finish(picture)
    except BadInput as error:
        return error
