"""Checks a request for a frame, before anything is planned."""

from collections.abc import Mapping

from headway.errors import BadInput
from headway.v1 import common_pb2, splat_pb2
from services.splat_worker.camera import Camera, from_matrices, look_at
from services.splat_worker.encode import COLOR_ONLY, DEFAULT_QUALITY, Channel, Channels, Encoding
from services.splat_worker.frame import FrameSpec
from services.splat_worker.library import LoadedScene
from services.splat_worker.rasterizer import BLACK
from services.splat_worker.views import Pose, Vector

ENCODINGS: Mapping[int, Encoding] = {
    common_pb2.PIXEL_FORMAT_UNSPECIFIED: Encoding.PNG,
    common_pb2.PIXEL_FORMAT_PNG: Encoding.PNG,
    common_pb2.PIXEL_FORMAT_JPEG: Encoding.JPEG,
    common_pb2.PIXEL_FORMAT_WEBP: Encoding.WEBP,
    common_pb2.PIXEL_FORMAT_RAW: Encoding.RAW,
    common_pb2.PIXEL_FORMAT_FLOAT32: Encoding.FLOAT32,
}
CHANNELS: Mapping[int, Channel] = {
    splat_pb2.FRAME_CHANNEL_COLOR: Channel.COLOR,
    splat_pb2.FRAME_CHANNEL_ALPHA: Channel.ALPHA,
    splat_pb2.FRAME_CHANNEL_DEPTH: Channel.DEPTH,
    splat_pb2.FRAME_CHANNEL_EXPECTED_DEPTH: Channel.EXPECTED_DEPTH,
}
DEFAULT_FIELD_OF_VIEW_DEG = 50.0
MAX_SH_DEGREE = 3
MESSAGE_OVERHEAD_BYTES = 4096
"""Room in a message beside the pixels, for the plan and what was served."""


def read_request(request: splat_pb2.RenderRequest, scene: LoadedScene, max_message_bytes: int) -> FrameSpec:
    """The request in our own terms. Raises BadInput naming the fields and their limits."""
    options = request.options
    problems = _problems(options, max_message_bytes)
    if problems:
        raise BadInput(problems)
    return FrameSpec(
        scene=scene,
        camera=read_camera(request.camera, scene.ranked.home, options),
        background=_background(options),
        sh_degree=options.sh_degree if options.HasField("sh_degree") else None,
        encoding=ENCODINGS[options.format],
        encoding_quality=options.encoding_quality if options.HasField("encoding_quality") else DEFAULT_QUALITY,
        channels=_channels(options),
        antialiased=options.antialiased,
    )


def _problems(options: splat_pb2.FrameOptions, max_message_bytes: int) -> dict[str, str]:
    checks = {
        "options.format": _format_problem(options, max_message_bytes - MESSAGE_OVERHEAD_BYTES),
        "options.encoding_quality": _quality_problem(options),
        "options.background": _background_problem(options),
        "options.sh_degree": _sh_problem(options),
        "options.channels": _channels_problem(options),
    }
    return {field: problem for field, problem in checks.items() if problem is not None}


def _format_problem(options: splat_pb2.FrameOptions, room_bytes: int) -> str | None:
    if options.format not in ENCODINGS:
        return f"must be one of {', '.join(common_pb2.PixelFormat.keys())}, not {options.format}"
    size_bytes = _unpacked_bytes(options)
    if size_bytes is not None and size_bytes > room_bytes:
        return f"a raw frame of this size has {size_bytes} bytes; a message holds {room_bytes}"
    return None


def _unpacked_bytes(options: splat_pb2.FrameOptions) -> int | None:
    """Bytes of a frame that is not compressed; None for one that is."""
    size = options.crop if options.HasField("crop") else options
    pixels = size.width * size.height
    if options.format == common_pb2.PIXEL_FORMAT_RAW:
        return 3 * pixels
    if options.format == common_pb2.PIXEL_FORMAT_FLOAT32:
        return 4 * pixels * (sum(CHANNELS[each].values for each in options.channels if each in CHANNELS) or 3)
    return None


def _channels_problem(options: splat_pb2.FrameOptions) -> str | None:
    if not all(each in CHANNELS for each in options.channels) or len(set(options.channels)) < len(options.channels):
        return f"must be different ones of {', '.join(splat_pb2.FrameChannel.keys()[1:])}, not {list(options.channels)}"
    if options.format != common_pb2.PIXEL_FORMAT_FLOAT32 and _channels(options) != COLOR_ONLY:
        return "must be colour alone, or unset, but for PIXEL_FORMAT_FLOAT32: the other formats hold nothing else"
    return None


def _channels(options: splat_pb2.FrameOptions) -> Channels:
    return tuple(CHANNELS[each] for each in options.channels) or COLOR_ONLY


def _quality_problem(options: splat_pb2.FrameOptions) -> str | None:
    if options.HasField("encoding_quality") and not 1 <= options.encoding_quality <= 100:
        return f"must be 1 to 100, not {options.encoding_quality}"
    return None


def _background_problem(options: splat_pb2.FrameOptions) -> str | None:
    if not all(0 <= part <= 1 for part in _background(options)):  # also refuses NaN
        return f"red, green and blue must each be 0 to 1, not {_background(options)}"
    return None


def _sh_problem(options: splat_pb2.FrameOptions) -> str | None:
    if options.HasField("sh_degree") and options.sh_degree > MAX_SH_DEGREE:
        return f"must be 0 to {MAX_SH_DEGREE}, not {options.sh_degree}"
    return None


def _background(options: splat_pb2.FrameOptions) -> tuple[float, float, float]:
    colour = options.background
    return (colour.red, colour.green, colour.blue) if options.HasField("background") else BLACK


def read_camera(camera: splat_pb2.Camera, home: Pose, options: splat_pb2.FrameOptions) -> Camera:
    """A camera of a request, cropped; `home` where it says nothing. Raises BadInput naming the field under "camera" or
    "options"."""
    whole = _whole_camera(camera, home, options.width, options.height)
    if not options.HasField("crop"):
        return whole
    crop = options.crop
    return whole.cropped(crop.left, crop.top, crop.width, crop.height)


def _whole_camera(camera: splat_pb2.Camera, home: Pose, width: int, height: int) -> Camera:
    pose = camera.WhichOneof("pose")
    if pose == "matrices":
        return from_matrices(camera.matrices.viewmat, camera.matrices.k, width, height)
    if pose == "look_at":
        return _look_at(camera.look_at, home, width, height)
    return home.camera(width, height)


def _look_at(view: splat_pb2.LookAtCamera, home: Pose, width: int, height: int) -> Camera:
    missing = [field for field in ("position", "target") if not view.HasField(field)]
    if missing:
        raise BadInput({f"camera.look_at.{field}": "must be given" for field in missing})
    return look_at(
        _vector(view.position),
        _vector(view.target),
        _vector(view.up) if view.HasField("up") else home.up,
        view.field_of_view_deg or DEFAULT_FIELD_OF_VIEW_DEG,
        width,
        height,
    )


def _vector(vector: splat_pb2.Vector3) -> Vector:
    return vector.x, vector.y, vector.z
