"""Checks a request for a path, before anything is planned."""

from collections.abc import Iterator
from dataclasses import dataclass

from headway.errors import BadInput
from headway.v1 import common_pb2, splat_pb2
from services.splat_worker.camera import Camera
from services.splat_worker.frame import FrameSpec
from services.splat_worker.library import LoadedScene
from services.splat_worker.path import Path
from services.splat_worker.request import read_camera, read_request

MAX_KEYS, MAX_FRAMES, MAX_PATH_PIXELS = 1024, 3600, 4_000_000_000
MAX_FRAMES_PER_SECOND = 240.0
DEFAULT_START_DELAY_S = 1.0


@dataclass(frozen=True, slots=True)
class PathSpec:
    """What was asked for, checked."""

    first: FrameSpec
    """A frame of the path; the others differ in their cameras alone."""
    path: Path
    frames_per_second: float | None
    """None: as fast as can be."""
    start_delay_s: float
    video: bool
    first_frame: int
    video_frames_per_second: float | None
    """None: as they are paced, or else the default."""


def read_path(request: splat_pb2.RenderPathRequest, scene: LoadedScene, max_message_bytes: int) -> PathSpec:
    """The request in our own terms; about 0.1 ms for each key camera. Raises BadInput naming the fields and their
    limits, and Unimplemented."""
    problems = dict(_problems(request))
    if problems:
        raise BadInput(problems)
    first = read_request(splat_pb2.RenderRequest(options=request.options), scene, max_message_bytes)
    keys = tuple(_key(request, index, scene) for index in range(len(request.cameras)))
    return PathSpec(
        first=first,
        path=Path(keys, request.frames_between),
        frames_per_second=request.frames_per_second or None,
        start_delay_s=_start_delay_s(request),
        video=request.video != splat_pb2.VIDEO_FORMAT_UNSPECIFIED,
        first_frame=request.first_frame,
        video_frames_per_second=request.video_frames_per_second or None,
    )


def _problems(request: splat_pb2.RenderPathRequest) -> Iterator[tuple[str, str]]:
    if not 1 <= len(request.cameras) <= MAX_KEYS:
        yield "cameras", f"{len(request.cameras)} key cameras; must be 1 to {MAX_KEYS}"
        return
    count = (len(request.cameras) - 1) * (request.frames_between + 1) + 1
    if count > MAX_FRAMES:
        yield "frames_between", f"makes a path of {count} frames; at most {MAX_FRAMES} are rendered"
    if request.first_frame >= count:
        yield "first_frame", f"{request.first_frame}; the path has {count} frames, counted from 0"
    pixels = count * request.options.width * request.options.height
    if pixels > MAX_PATH_PIXELS:
        yield "options.width", f"makes a path of {pixels} pixels in all; at most {MAX_PATH_PIXELS} are rendered"
    for field in ("frames_per_second", "video_frames_per_second"):
        rate = getattr(request, field)
        if not 0 <= rate <= MAX_FRAMES_PER_SECOND:  # also refuses NaN
            yield field, f"{rate}; must be 0 to {MAX_FRAMES_PER_SECOND:g}"
    delay_s = _start_delay_s(request)
    if not 0 < delay_s <= 3600:
        yield "start_delay", f"{delay_s} s; must be above 0 and at most an hour"
    yield from _video_problems(request)


def _video_problems(request: splat_pb2.RenderPathRequest) -> Iterator[tuple[str, str]]:
    if request.video == splat_pb2.VIDEO_FORMAT_UNSPECIFIED:
        return
    if request.video not in splat_pb2.VideoFormat.values():
        yield "video", f"must be one of {', '.join(splat_pb2.VideoFormat.keys())}, not {request.video}"
    if request.options.format != common_pb2.PIXEL_FORMAT_UNSPECIFIED:
        yield "options.format", "must be unset for a video, whose frames have no format of their own"
    for side in ("width", "height"):
        if getattr(request.options, side) % 2:
            yield f"options.{side}", f"{getattr(request.options, side)} px; must be even for a video"


def _start_delay_s(request: splat_pb2.RenderPathRequest) -> float:
    if not request.HasField("start_delay"):
        return DEFAULT_START_DELAY_S
    return request.start_delay.seconds + request.start_delay.nanos / 1e9


def _key(request: splat_pb2.RenderPathRequest, index: int, scene: LoadedScene) -> Camera:
    try:
        return read_camera(request.cameras[index], scene.ranked.home, request.options)
    except BadInput as error:
        renamed = {
            field.replace("camera.", f"cameras[{index}].", 1): problem for field, problem in error.violations.items()
        }
        raise BadInput(renamed) from None
