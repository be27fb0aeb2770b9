"""What the chaos run asks, and what the answers must be.

Texts are greedy, in batch-invariant mode: every token must be the reference's. Frames are held against the bytes of the
same view at the rung that was served. Images are asked for at one rung, because steps that are planned anew on the way
lead elsewhere, and are held against the reference's pixels: where images of several requests share a step, sums are
rounded otherwise than alone, so that a pixel may differ by `MOST_APART` of 255; how many do is told.

Most requests are such that routers cannot answer them from the result cache: a greedy text is asked for as one drawn
from the likeliest token alone, images with previews, frames as paths. Every `KEPT_EVERY`-th may be answered so.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.splats import SCENE, SCENES, walker
from headway.client import AsyncHeadway
from headway.requests import images_request, path_request, render_request, service_level, text_request
from headway.v1 import common_pb2, image_pb2, splat_pb2, text_pb2
from services.splat_worker.card import read_cards

KINDS = ("text", "image", "splat")
TOKENS, IMAGES, SIDE_PX, PATH_FRAMES = 48, 16, 192, 4
VARIANTS = 12
"""Different requests of each kind."""
KEPT_EVERY = 4
NFES = (4, 2, 1)
"""Function evaluations of the images, by variant in turn."""
TARGET_S = 1.0
"""When answers are wanted: deadlines leave room for a fault, and nobody would wait so long without one."""
MOST_APART = 2
SUBJECTS = (
    "exceptions", "generators", "decorators", "context managers", "closures", "slices", "iterators", "dictionaries",
    "modules", "threads", "sockets", "dates",
)  # fmt: skip


@dataclass(slots=True)
class Answer:
    """What one call has brought so far."""

    plan: common_pb2.Plan | None = None
    served: common_pb2.Served | None = None
    tokens: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    text: str = ""
    told_tokens: int = 0
    images: list[image_pb2.Image] = field(default_factory=list)
    frames: list[tuple[int, str, bytes]] = field(default_factory=list)
    """(view, rung, bytes)."""
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: its kind, which of the variants, whether a kept answer may do, and a frame's rung; None: any."""

    kind: str
    variant: int
    kept: bool
    rung: str | None = None

    def calls(self, client: Any, deadline_s: float) -> AsyncIterator[Any]:
        """Its messages, from any client with the methods of `AsyncHeadway`."""
        if self.kind == "text":
            return client.text(_text(self.variant, kept=self.kept), deadline_s=deadline_s)
        if self.kind == "image":
            return client.images(_images(self.variant, previews=not self.kept), deadline_s=deadline_s)
        if self.kept:
            return _one(client.render(_frame(self.variant, self.rung), deadline_s=deadline_s))
        return client.path(_path(self.variant, self.rung), deadline_s=deadline_s)

    def note(self, message: Any, answer: Answer) -> None:
        """Adds a message to what came."""
        match message:
            case text_pb2.GenerateResponse():
                _note_text(message, answer)
            case image_pb2.GenerateImagesResponse():
                _note_images(message, answer)
            case splat_pb2.RenderResponse():
                answer.plan, answer.served = message.plan, message.served
                answer.frames.append((self.variant, message.served.rung.label, message.frame.data))
            case _:
                _note_path(message, answer, self.variant)


async def _one(call: Any) -> AsyncIterator[Any]:
    yield await call


def _text(variant: int, *, kept: bool) -> text_pb2.GenerateRequest:
    chat = [("user", f"Explain {SUBJECTS[variant]} in Python.")]
    drawn = {"temperature": 0.0} if kept else {"top_k": 1}
    level = service_level(exact="100%", target_s=TARGET_S)
    return text_request(chat, max_tokens=TOKENS, level=level, **drawn)  # type: ignore[arg-type]


def _images(variant: int, *, previews: bool) -> image_pb2.GenerateImagesRequest:
    level = service_level(exact=str(NFES[variant % len(NFES)]), target_s=TARGET_S)
    return images_request(variant % 10, count=IMAGES, seed=variant, format="raw", previews=previews, level=level)


def _camera(variant: int) -> splat_pb2.Camera:
    return walker(read_cards(SCENES)[SCENE].home, variant, 0.0)


def _frame(variant: int, rung: str | None = None) -> splat_pb2.RenderRequest:
    level, camera = service_level(exact=rung, target_s=TARGET_S), _camera(variant)
    return render_request(SCENE, width=SIDE_PX, height=SIDE_PX, camera=camera, format="raw", level=level)


def _views(variant: int) -> list[int]:
    return [(variant + step) % VARIANTS for step in range(PATH_FRAMES)]


def _path(variant: int, rung: str | None) -> splat_pb2.RenderPathRequest:
    cameras, level = [_camera(view) for view in _views(variant)], service_level(exact=rung, target_s=TARGET_S)
    return path_request(SCENE, cameras, width=SIDE_PX, height=SIDE_PX, format="raw", level=level)


def _note_text(message: text_pb2.GenerateResponse, answer: Answer) -> None:
    if message.HasField("plan"):
        answer.plan = message.plan
    elif message.HasField("chunk"):
        answer.offsets.append(message.chunk.offset)
        answer.tokens.extend(message.chunk.token_ids)
        answer.text += message.chunk.text
    else:
        answer.served, answer.told_tokens = message.summary.served, message.summary.usage.completion_tokens


def _note_images(message: image_pb2.GenerateImagesResponse, answer: Answer) -> None:
    if message.HasField("plan"):
        answer.plan = message.plan
    elif message.HasField("summary"):
        answer.served = message.summary.served
    else:
        answer.images.extend(image for image in message.batch.images if not image.preview)


def _note_path(message: splat_pb2.RenderPathResponse, answer: Answer, variant: int) -> None:
    if message.HasField("plan"):
        answer.plan = message.plan
    elif message.HasField("served"):
        answer.served = message.served
    elif message.frame.HasField("frame"):
        view, rung = _views(variant)[message.frame.index], message.frame.served.rung.label
        answer.frames.append((view, rung, message.frame.frame.data))
    else:
        answer.skipped += 1


@dataclass(frozen=True)
class References:
    """What the answers must be; made by one worker of each kind, alone, before anything goes wrong."""

    texts: tuple[tuple[tuple[int, ...], str], ...]
    """(tokens, text) by variant."""
    images: tuple[tuple[bytes, ...], ...]
    """Pixels by variant."""
    frames: Mapping[tuple[int, str], bytes]
    """By view and rung."""

    def fault_of(self, asked: Asked, answer: Answer) -> str | None:
        """What is wrong with a whole answer; None when it is right."""
        if asked.kind == "text":
            return self._fault_of_text(asked.variant, answer)
        if asked.kind == "image":
            return self._fault_of_images(asked.variant, answer)
        wanted = [asked.variant] if asked.kept else _views(asked.variant)
        if [view for view, _, _ in answer.frames] != wanted:
            return f"frames of views {[view for view, _, _ in answer.frames]} for {wanted}"
        wrong = [(view, rung) for view, rung, data in answer.frames if self.frames[view, rung] != data]
        return f"other bytes than the reference for view and rung {wrong}" if wrong else None

    def _fault_of_text(self, variant: int, answer: Answer) -> str | None:
        tokens, text = self.texts[variant]
        if tuple(answer.tokens) != tokens or answer.told_tokens != len(tokens):
            return f"tokens {answer.tokens}, told {answer.told_tokens}, for {list(tokens)}"
        if answer.offsets != sorted(set(answer.offsets)):
            return f"offsets {answer.offsets}"
        return None if answer.text == text else f"text {answer.text!r} for {text!r}"

    def _fault_of_images(self, variant: int, answer: Answer) -> str | None:
        found = {image.index: image for image in answer.images}
        if len(answer.images) != IMAGES or sorted(found) != [*range(IMAGES)]:
            return f"images {[image.index for image in answer.images]}"
        apart = [apart_of(image.data, self.images[variant][index]) for index, image in found.items()]
        return f"pixels {max(apart)} of 255 apart" if max(apart) > MOST_APART else None

    def same_images(self, asked: Asked, answer: Answer) -> int:
        """How many images are the reference's, bit by bit."""
        return sum(image.data == self.images[asked.variant][image.index] for image in answer.images)


def apart_of(one: bytes, other: bytes) -> int:
    """The most that a byte differs by; 255 for images of different sizes."""
    if len(one) != len(other):
        return 255
    first, second = (np.frombuffer(data, np.uint8).astype(np.int16) for data in (one, other))
    return int(np.abs(first - second).max(initial=0))


async def make_references(workers: Mapping[str, str], deadline_s: float) -> References:
    """Asks the first worker of each kind itself, one request at a time. `workers`: addresses by kind."""
    async with (
        AsyncHeadway(workers["text"]) as texts,
        AsyncHeadway(workers["image"]) as images,
        AsyncHeadway(workers["splat"]) as frames,
    ):
        rungs = [rung.label for rung in (await frames.scenes()).scenes[0].ladder.rungs]
        return References(
            tuple([await _reference_text(texts, variant, deadline_s) for variant in range(VARIANTS)]),
            tuple([await _reference_images(images, variant, deadline_s) for variant in range(VARIANTS)]),
            {
                (view, rung): (await frames.render(_frame(view, rung), deadline_s=deadline_s)).frame.data
                for view in range(VARIANTS)
                for rung in rungs
            },
        )


async def _reference_text(client: AsyncHeadway, variant: int, deadline_s: float) -> tuple[tuple[int, ...], str]:
    answer = Answer()
    async for message in client.text(_text(variant, kept=True), deadline_s=deadline_s):
        _note_text(message, answer)
    return tuple(answer.tokens), answer.text


async def _reference_images(client: AsyncHeadway, variant: int, deadline_s: float) -> tuple[bytes, ...]:
    answer = Answer()
    async for message in client.images(_images(variant, previews=False), deadline_s=deadline_s):
        _note_images(message, answer)
    return tuple(image.data for image in sorted(answer.images, key=lambda image: image.index))
