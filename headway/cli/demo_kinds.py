"""The three kinds of work that the demo sends, each through the same client that users have."""

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image as Pixels
from rich.console import Console

from headway.cli.show import ms
from headway.client import Headway
from headway.errors import HeadwayError
from headway.requests import images_request, look_at, render_request, service_level, text_request
from headway.v1 import common_pb2, image_pb2, splat_pb2, text_pb2

GENEROUS_S = 8.0
"""Ample; and below 10 s, from where gRPC rounds deadlines so coarsely that the hops' share drowns in it."""
_TOKENS = 120
_DIGITS, _EACH = 10, 6
_GAP_PX, _SCALE = 1, 6
_PROMPT = "The iterator protocol"


@dataclass(frozen=True)
class Shot:
    """One request and what became of it."""

    deadline_s: float
    took_s: float
    plan: common_pb2.Plan | None
    served: common_pb2.Served | None
    error: HeadwayError | None
    result: str
    """What came of it, for people: a file, or how the text ended."""

    @property
    def in_time(self) -> bool:
        return self.took_s <= self.deadline_s


class Kind(Protocol):
    """One kind of work."""

    name: str

    def rungs(self) -> Sequence[str]:
        """The labels of its ladder, best first."""

    def send(self, deadline_s: float, *, exact: str | None = None, shown: bool = False) -> Shot:
        """Sends one request and waits for its end. `shown`: keeps the result and tells of it."""


@dataclass
class _Answer:
    plan: common_pb2.Plan | None = None
    served: common_pb2.Served | None = None
    result: str = ""


def _timed(deadline_s: float, call: Callable[[_Answer], None]) -> Shot:
    answer, error, began_s = _Answer(), None, time.monotonic()
    try:
        call(answer)
    except HeadwayError as refusal:
        error = refusal
    took_s = time.monotonic() - began_s
    return Shot(deadline_s, took_s, answer.plan, answer.served, error, answer.result)


class Text:
    """A story that streams."""

    name = "text"

    def __init__(self, mesh: Headway, console: Console, folder: Path) -> None:
        self._mesh, self._console = mesh, console

    def rungs(self) -> Sequence[str]:
        return [rung.label for rung in self._mesh.text_models().models[0].ladder.rungs]

    def send(self, deadline_s: float, *, exact: str | None = None, shown: bool = False) -> Shot:
        # Without a seed: with one, the router's cache would rightly answer the later requests.
        level = service_level(exact=exact)
        request = text_request(_PROMPT, max_tokens=_TOKENS, temperature=0.6, top_p=0.9, level=level)

        def call(answer: _Answer) -> None:
            for message in self._mesh.text(request, deadline_s=deadline_s):
                self._take(message, answer, shown)

        if shown:
            self._console.print(f"[bold]{ms(deadline_s * 1000)}[/] [cyan]{_PROMPT}[/]", end="", highlight=False)
        shot = _timed(deadline_s, call)
        if shown and shot.error is not None:
            self._console.print(f" [yellow]{shot.error.reason_name.lower().replace('_', ' ')}[/]\n")
        return shot

    def _take(self, message: text_pb2.GenerateResponse, answer: _Answer, shown: bool) -> None:
        match message.WhichOneof("part"):
            case "plan":
                answer.plan = message.plan
            case "chunk" if shown:
                self._console.print(message.chunk.text, end="", markup=False, highlight=False, soft_wrap=True)
            case "summary":
                answer.served = message.summary.served
                why = text_pb2.FinishReason.Name(message.summary.finish_reason).removeprefix("FINISH_REASON_")
                answer.result = f"{message.summary.usage.completion_tokens} tokens, ended by {why.lower()}"
                if shown:
                    self._console.print("\n")


class Images:
    """A sheet of images."""

    name = "images"

    def __init__(self, mesh: Headway, console: Console, folder: Path) -> None:
        self._mesh, self._folder = mesh, folder

    def rungs(self) -> Sequence[str]:
        return [rung.label for rung in self._mesh.image_models().models[0].ladder.rungs]

    def send(self, deadline_s: float, *, exact: str | None = None, shown: bool = False) -> Shot:
        # Without a seed: with one, the router's cache would rightly answer the later requests.
        labels = list(range(_DIGITS)) * _EACH
        request = images_request(labels, format="png", level=service_level(exact=exact))

        def call(answer: _Answer) -> None:
            images: list[image_pb2.Image] = []
            for message in self._mesh.images(request, deadline_s=deadline_s):
                match message.WhichOneof("part"):
                    case "plan":
                        answer.plan = message.plan
                    case "batch":
                        images.extend(message.batch.images)
                    case "summary":
                        answer.served = message.summary.served
            if shown and images:
                answer.result = _save_sheet(images, self._folder / f"images-{_stem(deadline_s)}.png")

        return _timed(deadline_s, call)


def _save_sheet(images: Sequence[image_pb2.Image], file: Path) -> str:
    cell = images[0].width + _GAP_PX
    sheet = Pixels.new("L" if images[0].channels == 1 else "RGB", (_DIGITS * cell, _EACH * cell))
    for image in images:
        at = (image.index % _DIGITS * cell, image.index // _DIGITS * cell)
        sheet.paste(Pixels.open(io.BytesIO(image.data)), at)
    sheet.resize((sheet.width * _SCALE, sheet.height * _SCALE), Pixels.Resampling.BICUBIC).save(file)
    return file.name


class Frames:
    """Frames of a scene, each from a place of its own: the same view again would come from the router's cache."""

    name = "splats"

    def __init__(self, mesh: Headway, console: Console, folder: Path) -> None:
        self._mesh, self._folder = mesh, folder
        self._sent = 0

    def rungs(self) -> Sequence[str]:
        return [rung.label for rung in self._scene().ladder.rungs]

    def send(self, deadline_s: float, *, exact: str | None = None, shown: bool = False) -> Shot:
        scene = self._scene()
        self._sent += 1
        camera = _step_aside(scene.default_camera, self._sent)
        request = render_request(scene.name, camera=camera, level=service_level(exact=exact))

        def call(answer: _Answer) -> None:
            response = self._mesh.render(request, deadline_s=deadline_s)
            answer.plan, answer.served = response.plan, response.served
            if shown:
                file = self._folder / f"splats-{_stem(deadline_s)}.png"
                file.write_bytes(response.frame.data)
                answer.result = file.name

        return _timed(deadline_s, call)

    def _scene(self) -> splat_pb2.Scene:
        return self._mesh.scenes().scenes[0]


def _step_aside(camera: splat_pb2.LookAtCamera, step: int) -> splat_pb2.Camera:
    """A camera that is a thousandth of its distance closer for each step: too little to see, enough to be another."""
    near, far = camera.target, camera.position
    keep, share = 1 - step / 1000, step / 1000
    position = (
        far.x * keep + near.x * share,
        far.y * keep + near.y * share,
        far.z * keep + near.z * share,
    )
    view = look_at(position, (near.x, near.y, near.z), field_of_view_deg=camera.field_of_view_deg)
    if camera.HasField("up"):
        view.look_at.up.CopyFrom(camera.up)
    return view


def _stem(deadline_s: float) -> str:
    return f"{deadline_s * 1000:.0f}ms"
