"""One request of each kind, as the benchmarks send it, and what came of it."""

import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from headway.client import AsyncHeadway
from headway.errors import HeadwayError
from headway.requests import images_request, render_request, text_request
from headway.v1 import common_pb2, text_pb2


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one request. Times in ms."""

    kind: str
    deadline_ms: float
    elapsed_ms: float
    """From the call to its end, on the client's clock."""
    refused: str | None = None
    """The reason, when it was not served."""
    rung: str = ""
    quality: float = math.nan
    steps: int = 0
    predicted_p50_ms: float = math.nan
    predicted_p99_ms: float = math.nan
    actual_ms: float = math.nan
    """From arrival at the worker to the complete answer."""
    admitted: bool = False
    """A plan came, so from then on the deadline was a promise."""
    ended_itself: bool = False
    """A text that the model ended before it had the tokens that were planned."""
    payload: bytes = b""

    @property
    def in_time(self) -> bool:
        return self.refused is None and self.elapsed_ms <= self.deadline_ms


Send = Callable[[AsyncHeadway, int, float, common_pb2.ServiceLevel | None], AsyncIterator[Any]]


@dataclass(frozen=True, slots=True)
class Ask:
    """A kind of request; `send` yields messages, the last of which has `served` or a part that has."""

    kind: str
    what: str
    send: Send


async def _text(
    mesh: AsyncHeadway, seed: int, deadline_s: float, level: common_pb2.ServiceLevel | None
) -> AsyncIterator[Any]:
    # A question that this model answers at length: how long a text becomes is not predicted yet.
    chat = [("user", "Explain exceptions in Python.")]
    request = text_request(chat, max_tokens=64, temperature=0.5, top_p=0.9, seed=seed, level=level)
    async for message in mesh.text(request, deadline_s=deadline_s):
        yield message


async def _images(
    mesh: AsyncHeadway, seed: int, deadline_s: float, level: common_pb2.ServiceLevel | None
) -> AsyncIterator[Any]:
    request = images_request(seed % 10, count=64, seed=seed, level=level)
    async for message in mesh.images(request, deadline_s=deadline_s):
        yield message


async def _frame(
    mesh: AsyncHeadway, seed: int, deadline_s: float, level: common_pb2.ServiceLevel | None
) -> AsyncIterator[Any]:
    scene = (await mesh.scenes()).scenes[0].name if not _SCENE else _SCENE[0]
    _SCENE[:] = [scene]
    # One pixel of width makes each frame another request, so that no cache can answer it.
    yield await mesh.render(
        render_request(scene, width=448 + seed % 64, height=480, format="jpeg", level=level), deadline_s=deadline_s
    )


_SCENE: list[str] = []

ASKS = {
    "text": Ask("text", "64 tokens", _text),
    "image": Ask("image", "64 images", _images),
    "splat": Ask("splat", "a frame of about 480x480", _frame),
}


async def ask(
    kind: str, mesh: AsyncHeadway, seed: int, deadline_ms: float, level: common_pb2.ServiceLevel | None = None
) -> Outcome:
    """Sends one request and waits for its end."""
    start_s, message, plan, served, payload = time.perf_counter(), None, None, None, bytearray()

    def elapsed_ms() -> float:
        return (time.perf_counter() - start_s) * 1000

    try:
        async for message in ASKS[kind].send(mesh, seed, deadline_ms / 1000, level):
            if plan is None:
                plan = common_pb2.Plan.FromString(message.plan.SerializeToString())
            served = message.served if kind == "splat" else message.summary.served
            payload += _payload(kind, message)
    except HeadwayError as error:
        return Outcome(kind, deadline_ms, elapsed_ms(), refused=error.reason_name, admitted=plan is not None)
    assert message is not None and plan is not None and served is not None
    return Outcome(
        kind,
        deadline_ms,
        elapsed_ms(),
        rung=served.rung.label,
        quality=served.quality,
        steps=served.steps_executed,
        predicted_p50_ms=plan.predicted_p50_ms,
        predicted_p99_ms=plan.predicted_p99_ms,
        actual_ms=served.budget_ms - served.slack_ms,
        admitted=True,
        ended_itself=kind == "text" and message.summary.finish_reason == text_pb2.FINISH_REASON_STOP,
        payload=bytes(payload),
    )


def _payload(kind: str, message: Any) -> bytes:
    if kind == "text":
        return message.chunk.text.encode()
    if kind == "splat":
        return bytes(message.frame.data)
    return b"".join(image.data for image in message.batch.images)
