"""A client over several routers: calls go to each in turn, and on through another one where a router is lost.

    async with BalancedHeadway(["10.0.0.1:50050", "10.0.0.2:50050"]) as mesh:
        async for message in mesh.text(text_request("Once upon a time"), deadline_s=1.5):
            print(message.chunk.text, end="")

Routers hold no state that a call needs, so any of them can take over: none of an answer is lost, none comes twice. A
router that drains is passed over, one that hangs is noticed by its silence.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headway.channels import OPEN, Credentials, open_channel
from headway.continuing import Again, Continuation, Frames, Images, Text
from headway.deadline import PROMISED, Clock
from headway.errors import DETAILS_KEY, HeadwayError, RemoteError, WorkerLost, from_rpc_error
from headway.tracing import inject
from headway.v1 import errors_pb2, image_pb2, splat_pb2, text_pb2

MOST_ATTEMPTS = 8
"""Routers that are asked for one call, the same one again included."""
CHECK_EVERY_S = 0.25
SILENCE_S = 1.0
"""A router that says nothing for so long is taken for lost."""
_ASK_ANOTHER = {errors_pb2.ERROR_REASON_DRAINING, errors_pb2.ERROR_REASON_TOO_MANY_CALLS}
_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@dataclass(frozen=True, slots=True)
class _Rpc:
    path: str
    response: Any
    streams: bool
    continuation: Callable[[bytes, Any], Continuation]


_TEXT = _Rpc("/headway.v1.TextGeneration/Generate", text_pb2.GenerateResponse, True, Text)
_IMAGES = _Rpc("/headway.v1.ImageGeneration/Generate", image_pb2.GenerateImagesResponse, True, Images)
_FRAME = _Rpc("/headway.v1.SplatRendering/Render", splat_pb2.RenderResponse, False, Again)
_PATH = _Rpc("/headway.v1.SplatRendering/RenderPath", splat_pb2.RenderPathResponse, True, Frames)


class _Lost(Exception):
    """The connection to a router broke, or it went silent; no server said so."""

    def __init__(self, error: HeadwayError) -> None:
        super().__init__(error.message)
        self.error = error


class _Router:
    """One router, and whether it serves."""

    def __init__(self, address: str, credentials: Credentials, changed: Callable[[], None]) -> None:
        self.serves = True
        self._address, self._own, self._changed = address, credentials.metadata(), changed
        self._channel = open_channel(address, credentials)
        self._calls, self._gave_up = set[Any](), set[Any]()

    async def follow(self) -> None:
        """Asks again and again whether it serves, until cancelled."""
        stub = health_pb2_grpc.HealthStub(self._channel)
        while True:
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=SILENCE_S)
                serves = answer.status == health_pb2.HealthCheckResponse.SERVING
            except grpc.aio.AioRpcError as error:
                serves = False
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    self._give_up()
            if serves != self.serves:
                self.serves = serves
                self._changed()
            await asyncio.sleep(CHECK_EVERY_S)

    def _give_up(self) -> None:
        """Ends the calls on it, so that they go on elsewhere."""
        for call in self._calls:
            if call.cancel():
                self._gave_up.add(call)

    async def received(self, rpc: _Rpc, raw: bytes, timeout_s: float, *, promised: bool) -> AsyncGenerator[Any, None]:
        """The answer's messages; `promised`: another router began it. Raises a `HeadwayError`, or `_Lost`."""
        make: Any = self._channel.unary_stream if rpc.streams else self._channel.unary_unary
        method = make(rpc.path, response_deserializer=rpc.response.FromString)
        call = method(raw, timeout=timeout_s, metadata=inject((*self._own, PROMISED) if promised else self._own))
        self._calls.add(call)
        try:
            if not rpc.streams:
                yield await call
                return
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise _told(from_rpc_error(error)) from None
        except asyncio.CancelledError:
            if call not in self._gave_up:
                raise
            raise _Lost(WorkerLost(f"the router at {self._address} is silent", retry_after_s=SILENCE_S)) from None
        finally:
            self._calls.discard(call)
            self._gave_up.discard(call)
            call.cancel()

    async def close(self) -> None:
        await self._channel.close(None)


def _told(error: RemoteError) -> Exception:
    typed = any(key == DETAILS_KEY for key, _ in error.trailers)
    return _Lost(error) if error.status in _LOST and not typed else error


class BalancedHeadway:
    """A client over several routers. Enter it inside the event loop that uses it; safe for many calls at once."""

    def __init__(
        self, addresses: Sequence[str], credentials: Credentials = OPEN, clock: Clock = time.monotonic
    ) -> None:
        """Raises ValueError without an address."""
        if not addresses:
            raise ValueError("addresses: at least one router")
        self._news, self._turn, self._clock = asyncio.Event(), 0, clock
        self._routers = [_Router(address, credentials, self._changed) for address in addresses]
        self._following: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._following = [asyncio.create_task(router.follow()) for router in self._routers]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        await asyncio.gather(*(router.close() for router in self._routers))

    def text(self, request: text_pb2.GenerateRequest, *, deadline_s: float) -> AsyncIterator[text_pb2.GenerateResponse]:
        """Streams a plan, token chunks and a summary."""
        return self._messages(_TEXT, request, deadline_s)

    def images(
        self, request: image_pb2.GenerateImagesRequest, *, deadline_s: float
    ) -> AsyncIterator[image_pb2.GenerateImagesResponse]:
        """Streams a plan, images and a summary."""
        return self._messages(_IMAGES, request, deadline_s)

    def path(
        self, request: splat_pb2.RenderPathRequest, *, deadline_s: float
    ) -> AsyncIterator[splat_pb2.RenderPathResponse]:
        """Streams a plan, the frames of a path in order, and a summary."""
        return self._messages(_PATH, request, deadline_s)

    async def render(self, request: splat_pb2.RenderRequest, *, deadline_s: float) -> splat_pb2.RenderResponse:
        """Renders one frame."""
        (answer,) = [message async for message in self._messages(_FRAME, request, deadline_s)]
        return answer  # type: ignore[no-any-return]

    async def _messages(self, rpc: _Rpc, request: Any, deadline_s: float) -> AsyncGenerator[Any, None]:
        until_s = self._clock() + deadline_s
        answer, begun, last = rpc.continuation(request.SerializeToString(), request), False, None
        raw = answer.first()
        for attempt in range(MOST_ATTEMPTS):
            router = await self._next(last, until_s)
            last, left_s = router, max(0.0, until_s - self._clock())
            failure: HeadwayError
            try:
                async with aclosing(router.received(rpc, raw, left_s, promised=begun)) as received:
                    async for message in received:
                        if attempt == 0 or answer.rest(message):
                            begun = True
                            answer.passed(message.SerializeToString())
                            yield message
                return
            except _Lost as lost:
                following, failure = answer.next(), lost.error
                if following is None:
                    raise failure from None
                raw = following
            except HeadwayError as refused:
                failure = refused
                if begun or refused.reason not in _ASK_ANOTHER:
                    raise
        raise failure

    async def _next(self, last: _Router | None, until_s: float) -> _Router:
        """The router whose turn it is, of those that serve; the last one again only after a pause.

        Waits for one that serves while there is time.
        """
        while True:
            news, self._turn = self._news, (self._turn + 1) % len(self._routers)
            in_turn = self._routers[self._turn :] + self._routers[: self._turn]
            serving = [router for router in in_turn if router.serves]
            others = [router for router in serving if router is not last]
            left_s = until_s - self._clock()
            if others or left_s <= 0:
                return [*others, *in_turn][0]
            with suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), min(left_s, CHECK_EVERY_S))
            if serving and serving[0].serves:
                return serving[0]

    def _changed(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
