"""Checks a request for images against the model, before anything is planned."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from headway.errors import BadInput
from headway.v1 import common_pb2, image_pb2
from services.dit_worker.encode import DEFAULT_QUALITY, Format, supports
from services.dit_worker.model.checkpoint import Config
from services.dit_worker.model.guidance import Guidance
from services.dit_worker.sample_group import ImagesSpec

FORMATS: Mapping[int, Format] = {
    common_pb2.PIXEL_FORMAT_UNSPECIFIED: Format.PNG,
    common_pb2.PIXEL_FORMAT_PNG: Format.PNG,
    common_pb2.PIXEL_FORMAT_JPEG: Format.JPEG,
    common_pb2.PIXEL_FORMAT_WEBP: Format.WEBP,
    common_pb2.PIXEL_FORMAT_RAW: Format.RAW,
    common_pb2.PIXEL_FORMAT_FLOAT32: Format.FLOAT32,
}
BEST_QUALITY = 100


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What one model takes."""

    model: Config
    image_shape: tuple[int, int, int]
    """[channels, height, width] of an image, which is not a sample's where samples are latents."""
    max_images: int


def read_request(request: image_pb2.GenerateImagesRequest, limits: RequestLimits) -> ImagesSpec:
    """The request in our own terms. Raises BadInput with every field that is wrong."""
    problems = _problems(request, limits)
    if problems:
        raise BadInput(problems)
    count = request.count if request.HasField("count") else len(request.labels)
    labels = tuple(request.labels) if len(request.labels) == count else (request.labels[0],) * count
    return ImagesSpec(
        labels=labels,
        seed=request.seed if request.HasField("seed") else secrets.randbits(64),
        guidance=Guidance.fixed(request.guidance) if request.HasField("guidance") else limits.model.guidance,
        form=FORMATS[request.format],
        encoding_quality=request.encoding_quality if request.HasField("encoding_quality") else DEFAULT_QUALITY,
        previews=request.previews,
    )


def _problems(request: image_pb2.GenerateImagesRequest, limits: RequestLimits) -> dict[str, str]:
    checks = {
        "labels": _labels_problem(request, limits),
        "count": _count_problem(request, limits.max_images),
        "guidance": _guidance_problem(request, limits.model.guidance_max),
        "format": _format_problem(request.format, limits.image_shape[0]),
        "encoding_quality": _quality_problem(request),
    }
    return {field: problem for field, problem in checks.items() if problem is not None}


def _labels_problem(request: image_pb2.GenerateImagesRequest, limits: RequestLimits) -> str | None:
    labels, classes = request.labels, limits.model.topology.classes
    if not 1 <= len(labels) <= limits.max_images:
        return f"must be 1 to {limits.max_images} labels, not {len(labels)}"
    if request.HasField("count") and len(labels) not in (1, request.count):
        return f"must be one label, or one for each of the {request.count} images, not {len(labels)}"
    wrong = next((label for label in labels if label >= classes), None)
    return None if wrong is None else f"must each be 0 to {classes - 1}, not {wrong}"


def _count_problem(request: image_pb2.GenerateImagesRequest, most: int) -> str | None:
    if request.HasField("count") and not 1 <= request.count <= most:
        return f"must be 1 to {most}, not {request.count}"
    return None


def _guidance_problem(request: image_pb2.GenerateImagesRequest, most: float) -> str | None:
    if request.HasField("guidance") and not 1 <= request.guidance <= most:  # also refuses NaN
        return f"must be 1 to {most:g}, as the model was trained, not {request.guidance:g}"
    return None


def _format_problem(form: int, channels: int) -> str | None:
    if form not in FORMATS:
        return f"must be one of {', '.join(common_pb2.PixelFormat.keys())}, not {form}"
    if not supports(FORMATS[form], channels):
        return f"must be RAW or FLOAT32: the model makes {channels} channels, pictures hold 1 or 3"
    return None


def _quality_problem(request: image_pb2.GenerateImagesRequest) -> str | None:
    if request.HasField("encoding_quality") and not 1 <= request.encoding_quality <= BEST_QUALITY:
        return f"must be 1 to {BEST_QUALITY}, not {request.encoding_quality}"
    return None
