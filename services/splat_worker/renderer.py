"""What frames are drawn with: the host's cores (`cpu_renderer`) or a CUDA device (`gsplat_renderer`)."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from headway.errors import BadInput
from headway.quality import Rung
from services.splat_worker.frame import FrameSpec
from services.splat_worker.library import Placed
from services.splat_worker.rasterizer import Picture
from services.splat_worker.scene import Scene

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Exposure(Protocol[T_co]):
    """One frame while it is drawn."""

    @property
    def spec(self) -> FrameSpec: ...

    @property
    def rung(self) -> Rung:
        """At which it is to be drawn."""

    def binned(self, tile_work: int) -> None:
        """Told once, when tile lists say what is left (`TileLists.work`); where `rung` is another one after that, the
        frame starts again at it. Only of renderers that draw in stages."""

    def finish(self, picture: Picture) -> T_co:
        """What becomes of the picture; may be called on another thread, beside other exposures'."""


class Renderer(Protocol):
    """Draws frames of loaded scenes, for one caller at a time."""

    @property
    def engine(self) -> str:
        """Its name, as the worker describes itself."""

    @property
    def device(self) -> str: ...

    @property
    def build(self) -> str:
        """What else its speed depends on, beside the host: part of the name under which costs are kept."""

    @property
    def threads(self) -> int:
        """Of the host."""

    @property
    def gang_sizes(self) -> tuple[int, ...]:
        """How many frames may be worth drawing at once, rising; known once a frame was drawn."""

    def beside_bytes(self, scene: Scene) -> int:
        """What a scene takes beside its own arrays when it is placed."""

    def place(self, scene: Scene) -> Placed | None:
        """What drawing levels of the scene needs beside its own arrays; it lives as long as it is referred to."""

    def draw(self, exposures: Sequence[Exposure[T]]) -> list[T | BadInput]:
        """What `finish` gave for each, or the refusal of a view that only drawing shows to be too complex. Blocks.

        Several are of one scene, rung and `FrameSpec.kind`, and at most `gang_sizes` many.
        """

    def close(self) -> None:
        """Ends its threads."""
