"""A CPU rasteriser for 3D gaussians that follows gsplat's maths. The maths and the stages are in
README.md."""

from services.splat_worker.rasterizer.binning import TileLists
from services.splat_worker.rasterizer.compiled import max_threads
from services.splat_worker.rasterizer.project import Projection
from services.splat_worker.rasterizer.render import BLACK, Picture, Rasterizer, expected_depth

__all__ = ["BLACK", "Picture", "Projection", "Rasterizer", "TileLists", "expected_depth", "max_threads"]
