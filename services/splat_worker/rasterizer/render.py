"""The frame pipeline: project, bin, blend, each with its time, and room to change one's mind after
binning."""

import time
from dataclasses import dataclass, replace

import numpy as np

from headway.errors import BadInput
from services.splat_worker.camera import Camera
from services.splat_worker.rasterizer.binning import TileLists, bin_tiles
from services.splat_worker.rasterizer.blend import blend_tiles, blend_weights
from services.splat_worker.rasterizer.compiled import max_threads, use_threads
from services.splat_worker.rasterizer.depth_sort import depth_order
from services.splat_worker.rasterizer.project import Projection, ProjectionBuffers, project
from services.splat_worker.scene import FloatArray, Scene

BLACK = (0.0, 0.0, 0.0)
_LEAST_ALPHA = np.float32(1e-10)  # gsplat's own


@dataclass(frozen=True)
class Picture:
    """A finished frame: colour over the background and coverage, with what it took."""

    rgb: FloatArray  # [height, width, 3], from 0, not clipped above
    alpha: FloatArray  # [height, width], 0 to 1
    depth: FloatArray | None  # [height, width], sum of weight times depth along the camera's axis; None: not asked for
    visible: int  # gaussians that can be seen
    pairs: int  # of gaussian and tile
    stages: "StageTimes | None"
    """None: it was drawn in one go."""


@dataclass(frozen=True)
class StageTimes:
    """What the stages of a frame took."""

    project_ms: float
    bin_ms: float
    blend_ms: float


def expected_depth(depth: FloatArray, alpha: FloatArray) -> FloatArray:
    """Depth over alpha, all [height, width]: where what is seen lies; 0 where nothing is seen."""
    return np.asarray(depth / np.maximum(alpha, _LEAST_ALPHA), dtype=np.float32)


class Rasterizer:
    """Renders on the CPU with gsplat's maths on `threads` threads.

    Keeps its working memory between frames, so one instance serves one caller at a time; instances are
    independent.
    """

    def __init__(self, threads: int) -> None:
        if not 1 <= threads <= max_threads():
            raise BadInput("threads", f"{threads}; must be 1 to {max_threads()}")
        self.threads = threads
        self._buffers = ProjectionBuffers.allocate(0)

    def project(
        self, scene: Scene, camera: Camera, sh_degree: int | None = None, antialiased: bool = False
    ) -> Projection:
        """First stage. The result is valid until the next call. `sh_degree` None means the scene's own; `antialiased`
        dims splats by what the blur of every splat adds to their area, as gsplat's mode of that name."""
        start = time.perf_counter()
        use_threads(self.threads)
        if len(self._buffers.sources) < scene.count:
            self._buffers = ProjectionBuffers.allocate(scene.count)
        degree = scene.sh_degree if sh_degree is None else min(sh_degree, scene.sh_degree)
        projection = project(scene, camera, degree, antialiased, self._buffers)
        return replace(projection, ms=_ms_since(start))

    def bin(self, projection: Projection, camera: Camera) -> TileLists:
        """Second stage: depth order and tile lists; its `pairs` foretell what blending costs. Consumes the
        projection's keys. Raises BadInput when the view is too complex."""
        start = time.perf_counter()
        use_threads(self.threads)
        visible = projection.visible
        order = depth_order(
            projection.depth_keys,
            projection.slots,
            self._buffers.keys[:visible],
            self._buffers.spare_slots[:visible],
        )
        lists = bin_tiles(projection.records, order, camera.width, camera.height, self.threads)
        return replace(lists, ms=_ms_since(start))

    def blend(
        self,
        projection: Projection,
        lists: TileLists,
        camera: Camera,
        background: tuple[float, float, float] = BLACK,
        with_depth: bool = False,
    ) -> Picture:
        """Last stage: pixels, and their depth when asked for."""
        start = time.perf_counter()
        use_threads(self.threads)
        rgb, alpha, depth = blend_tiles(
            projection.records, lists, camera.width, camera.height, background, self.threads, with_depth
        )
        return Picture(
            rgb=rgb,
            alpha=alpha,
            depth=depth,
            visible=projection.visible,
            pairs=lists.pairs,
            stages=StageTimes(projection.ms, lists.ms, _ms_since(start)),
        )

    def render(
        self,
        scene: Scene,
        camera: Camera,
        background: tuple[float, float, float] = BLACK,
        sh_degree: int | None = None,
        antialiased: bool = False,
        with_depth: bool = False,
    ) -> Picture:
        """All stages."""
        projection = self.project(scene, camera, sh_degree, antialiased)
        return self.blend(projection, self.bin(projection, camera), camera, background, with_depth)

    def blend_weights(self, scene: Scene, camera: Camera) -> FloatArray:
        """Per gaussian of the scene [gaussians] how much of this view it makes up, in pixels; 0 when it is not seen."""
        projection = self.project(scene, camera, sh_degree=0)
        # Binning overwrites the projection's slots; which record is whose does not change.
        slots = projection.slots.copy()
        lists = self.bin(projection, camera)
        use_threads(self.threads)
        found = blend_weights(projection.records, lists, camera.width, camera.height, self.threads)
        weights = np.zeros(scene.count, dtype=np.float32)
        weights[projection.sources[slots]] = found[slots]
        return weights


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1000
