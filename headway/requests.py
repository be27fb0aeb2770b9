"""Builds requests from plain Python values; both clients and the command line use it."""

from collections.abc import Mapping, Sequence

from headway.errors import BadInput
from headway.v1 import common_pb2, image_pb2, splat_pb2, text_pb2

PRIORITIES: Mapping[str, common_pb2.Priority] = {
    "low": common_pb2.PRIORITY_LOW,
    "normal": common_pb2.PRIORITY_NORMAL,
    "high": common_pb2.PRIORITY_HIGH,
}
FORMATS: Mapping[str, common_pb2.PixelFormat] = {
    "png": common_pb2.PIXEL_FORMAT_PNG,
    "jpeg": common_pb2.PIXEL_FORMAT_JPEG,
    "webp": common_pb2.PIXEL_FORMAT_WEBP,
    "raw": common_pb2.PIXEL_FORMAT_RAW,
    "float32": common_pb2.PIXEL_FORMAT_FLOAT32,
}
_FLOORS = {"nfe": int, "tokens": int, "psnr_db": float, "normalised": float}

Vector = tuple[float, float, float]


def service_level(
    *, priority: str = "normal", at_least: str | None = None, exact: str | None = None, target_s: float | None = None
) -> common_pb2.ServiceLevel:
    """A service level. `at_least` is a measure and a value, e.g. "nfe=2", "psnr_db=30", "tokens=8", "normalised=0.9".

    Raises `BadInput` that names the argument.
    """
    if priority not in PRIORITIES:
        raise BadInput("priority", f"must be one of {', '.join(PRIORITIES)}, not {priority!r}")
    if at_least is not None and exact is not None:
        raise BadInput("exact", "cannot be given together with at_least")
    level = common_pb2.ServiceLevel(priority=PRIORITIES[priority])
    if exact is not None:
        level.exact = exact
    if at_least is not None:
        level.at_least.CopyFrom(_floor(at_least))
    if target_s is not None:
        if not 0 < target_s < 1e6:
            raise BadInput("target_s", f"must be above 0 and below a million, not {target_s}")
        level.target.FromNanoseconds(round(target_s * 1e9))
    return level


def _floor(text: str) -> common_pb2.QualityFloor:
    measure, _, value = text.partition("=")
    try:
        return common_pb2.QualityFloor(**{measure: _FLOORS[measure](value)})
    except (KeyError, ValueError) as error:
        known = ", ".join(f"{name}=VALUE" for name in _FLOORS)
        raise BadInput("at_least", f"must be one of {known}, not {text[:64]!r}") from error


def text_request(
    prompt: str | Sequence[tuple[str, str]],
    *,
    model: str = "",
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: Sequence[str] = (),
    level: common_pb2.ServiceLevel | None = None,
) -> text_pb2.GenerateRequest:
    """A request for text: a prompt, or a chat as (role, content) pairs."""
    sampling = text_pb2.Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    request = text_pb2.GenerateRequest(
        model=model, max_tokens=max_tokens, sampling=sampling, stop=stop, service_level=level
    )
    if isinstance(prompt, str):
        request.text = prompt
    else:
        messages = [text_pb2.ChatMessage(role=role, content=content) for role, content in prompt]
        request.chat.CopyFrom(text_pb2.Chat(messages=messages))
    return request


def images_request(
    labels: int | Sequence[int],
    *,
    count: int | None = None,
    model: str = "",
    seed: int | None = None,
    guidance: float | None = None,
    format: str = "png",
    encoding_quality: int | None = None,
    previews: bool = False,
    level: common_pb2.ServiceLevel | None = None,
) -> image_pb2.GenerateImagesRequest:
    """A request for images: one label for all of `count`, or a label for each; with `previews` after each step."""
    return image_pb2.GenerateImagesRequest(
        model=model,
        labels=[labels] if isinstance(labels, int) else labels,
        count=count,
        seed=seed,
        guidance=guidance,
        format=_format(format),
        encoding_quality=encoding_quality,
        previews=previews,
        service_level=level,
    )


def render_request(
    scene: str,
    *,
    width: int = 512,
    height: int = 512,
    camera: splat_pb2.Camera | None = None,
    format: str = "png",
    level: common_pb2.ServiceLevel | None = None,
) -> splat_pb2.RenderRequest:
    """A request for a frame; without a camera from the scene's own first view."""
    options = splat_pb2.FrameOptions(width=width, height=height, format=_format(format))
    return splat_pb2.RenderRequest(scene=scene, camera=camera, options=options, service_level=level)


def path_request(
    scene: str,
    cameras: Sequence[splat_pb2.Camera],
    *,
    frames_between: int = 0,
    frames_per_second: float | None = None,
    width: int = 512,
    height: int = 512,
    format: str | None = None,
    video: bool = False,
    video_frames_per_second: float | None = None,
    level: common_pb2.ServiceLevel | None = None,
) -> splat_pb2.RenderPathRequest:
    """A request for frames along key cameras; `video`: as one H.264 file, whose frames have no `format`."""
    options = splat_pb2.FrameOptions(width=width, height=height)
    if not video:
        options.format = _format(format or "png")
    return splat_pb2.RenderPathRequest(
        scene=scene,
        cameras=cameras,
        frames_between=frames_between,
        frames_per_second=frames_per_second or 0.0,
        options=options,
        video_frames_per_second=video_frames_per_second or 0.0,
        video=splat_pb2.VIDEO_FORMAT_H264_MP4 if video else splat_pb2.VIDEO_FORMAT_UNSPECIFIED,
        service_level=level,
    )


def look_at(
    position: Vector, target: Vector, *, up: Vector | None = None, field_of_view_deg: float = 50.0
) -> splat_pb2.Camera:
    """A pinhole camera at `position` that looks at `target`; in the scene's units."""
    view = splat_pb2.LookAtCamera(
        position=_vector(position), target=_vector(target), field_of_view_deg=field_of_view_deg
    )
    if up is not None:
        view.up.CopyFrom(_vector(up))
    return splat_pb2.Camera(look_at=view)


def _vector(value: Vector) -> splat_pb2.Vector3:
    return splat_pb2.Vector3(x=value[0], y=value[1], z=value[2])


def _format(name: str) -> common_pb2.PixelFormat:
    if name not in FORMATS:
        raise BadInput("format", f"must be one of {', '.join(FORMATS)}, not {name!r}")
    return FORMATS[name]
