"""The splat worker's noun: one frame of one scene."""

from dataclasses import dataclass

from headway.engine import Batch
from headway.planning import Choice, Job
from headway.quality import Rung
from headway.ticket import Ticket
from services.splat_worker.camera import Camera
from services.splat_worker.encode import COLOR_ONLY, DEPTHS, Channels, Encoding
from services.splat_worker.library import LoadedScene
from services.splat_worker.video import Film


@dataclass(frozen=True, slots=True)
class FrameSpec:
    """What was asked for, checked."""

    scene: LoadedScene
    camera: Camera
    """At the size asked for."""
    background: tuple[float, float, float]
    sh_degree: int | None
    """None: the scene's own."""
    encoding: Encoding
    encoding_quality: int
    channels: Channels = COLOR_ONLY
    """Of a frame in floats."""
    antialiased: bool = False

    @property
    def with_depth(self) -> bool:
        return not DEPTHS.isdisjoint(self.channels)

    @property
    def pixels(self) -> int:
        return self.camera.width * self.camera.height

    @property
    def kind(self) -> tuple[object, ...]:
        """Frames of one kind and rung differ in view and background alone: they cost about the same, and may be drawn
        in one launch."""
        camera = self.camera
        size = (camera.width, camera.height, *camera.whole_size)
        return (self.scene.hash, *size, self.sh_degree, self.antialiased, self.with_depth, self.encoding)

    def camera_at(self, rung: Rung) -> Camera:
        """The camera that draws it at a rung, on a smaller frame where the rung has one."""
        return self.camera.scaled(rung.resolution_scale or 1.0)


@dataclass(slots=True, eq=False)
class Frame:
    """One admitted request for a frame, or one frame of a path."""

    ticket: Ticket
    spec: FrameSpec
    film: Film | None = None
    """The video that the frame is one of; it gets its frames in the order of their indices."""
    index: int = 0
    """Its place in the film."""
    job: Job | None = None
    """What the planner sees of it: it never changes, and planning asks for it again and again."""


@dataclass(frozen=True, slots=True)
class Shot(Batch[Frame]):
    """One step: a frame at the rung that was planned when the step was put together."""

    choice: Choice
    slowness: float
    """How much slower than calibrated this host is now."""


@dataclass(frozen=True, slots=True)
class Gang(Batch[Frame]):
    """One step: frames of one scene, kind and level, each on a core of its own or all in one launch on a device."""

    shots: tuple[Shot, ...]


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """A finished frame."""

    data: bytes
    width: int
    height: int
    rendered_width: int
    rendered_height: int
    gaussians: int
    """Of the level that was drawn, before culling."""
