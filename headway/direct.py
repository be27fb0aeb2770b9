"""The direct path: asks a router which worker to call, then streams straight from it.

A streaming hop through the router costs it CPU for every token; a `Pick` costs it once. Where no worker can be reached,
or all that were picked refuse, the router is called as ever; where a worker is lost in the middle, the router goes on
from what came.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc

from headway.channels import Credentials, open_channel
from headway.continuing import Again, Continuation, Images, Text
from headway.deadline import PROMISED, Clock
from headway.errors import DETAILS_KEY, HeadwayError, RemoteError, from_rpc_error
from headway.lease import HEADER
from headway.prompts import MOST_PICKED_BYTES, canonical_prompt
from headway.tracing import Metadata, inject
from headway.v1 import common_pb2, errors_pb2, image_pb2, router_pb2, router_pb2_grpc, splat_pb2, text_pb2

_CONNECT_S = 0.25
_CONNECT_SHARE = 0.1
_SHUNNED_S = 30.0
"""How long a worker that could not be reached from here is left out."""
_ASK_ANOTHER = {
    errors_pb2.ERROR_REASON_SHED,
    errors_pb2.ERROR_REASON_TOO_MANY_CALLS,
    errors_pb2.ERROR_REASON_DRAINING,
    errors_pb2.ERROR_REASON_WORKER_LOST,
    errors_pb2.ERROR_REASON_UNAUTHENTICATED,
}


@dataclass(frozen=True, slots=True)
class Rpc:
    """One method that can go straight to a worker."""

    path: str
    response: Any
    streams: bool
    continuation: Callable[[bytes, Any], Continuation]
    pick: Callable[[Any], router_pb2.PickRequest]


def _pick_text(request: text_pb2.GenerateRequest) -> router_pb2.PickRequest:
    size = len(request.text) + sum(len(message.content) for message in request.chat.messages)
    return router_pb2.PickRequest(
        kind=common_pb2.KIND_TEXT,
        asset=request.model,
        service_level=request.service_level,
        items=1,
        steps=request.max_tokens or 128,
        prompt_tokens=len(request.tokens.ids) or 1 + size // 3,
        prompt=canonical_prompt(request, MOST_PICKED_BYTES),
    )


def _pick_images(request: image_pb2.GenerateImagesRequest) -> router_pb2.PickRequest:
    return router_pb2.PickRequest(
        kind=common_pb2.KIND_IMAGE,
        asset=request.model,
        service_level=request.service_level,
        items=request.count or len(request.labels),
    )


def _pick_frame(request: splat_pb2.RenderRequest) -> router_pb2.PickRequest:
    return router_pb2.PickRequest(
        kind=common_pb2.KIND_SPLAT,
        asset=request.scene,
        service_level=request.service_level,
        items=1,
        pixels=request.options.width * request.options.height,
    )


TEXT = Rpc("/headway.v1.TextGeneration/Generate", text_pb2.GenerateResponse, True, Text, _pick_text)
IMAGES = Rpc("/headway.v1.ImageGeneration/Generate", image_pb2.GenerateImagesResponse, True, Images, _pick_images)
FRAME = Rpc("/headway.v1.SplatRendering/Render", splat_pb2.RenderResponse, False, Again, _pick_frame)


class DirectPath:
    """Streams from workers that a router picks. Belongs to one event loop."""

    def __init__(self, router: grpc.aio.Channel, credentials: Credentials, clock: Clock = time.monotonic) -> None:
        self._router, self._credentials, self._clock = router, credentials, clock
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._shunned: dict[str, float] = {}

    async def close(self) -> None:
        """Closes the connections to workers, and what is in flight on them."""
        await asyncio.gather(*(channel.close(None) for channel in self._channels.values()))

    async def messages(self, rpc: Rpc, request: Any, deadline_s: float) -> AsyncGenerator[Any, None]:
        """The answer's messages, each as the caller is to see it. Raises a `HeadwayError`."""
        until_s = self._clock() + deadline_s
        answer, begun = rpc.continuation(request.SerializeToString(), request), False
        raw = answer.first()
        for channel, metadata in [item async for item in self._workers(rpc, request, until_s)]:
            try:
                async with aclosing(self._received(rpc, channel, raw, until_s, metadata)) as received:
                    async for message in received:
                        begun = True
                        answer.passed(message.SerializeToString())
                        yield message
                return
            except HeadwayError as failure:
                if not begun and (_is_lost(failure) or failure.reason in _ASK_ANOTHER):
                    continue
                following = answer.next() if _is_lost(failure) else None
                if following is None:
                    raise
                raw = following
                break
        own = self._credentials.metadata()
        own = (*own, PROMISED) if begun else own
        async with aclosing(self._received(rpc, self._router, raw, until_s, own)) as received:
            async for message in received:
                if not begun or answer.rest(message):
                    yield message

    async def _workers(
        self, rpc: Rpc, request: Any, until_s: float
    ) -> AsyncGenerator[tuple[grpc.aio.Channel, Metadata], None]:
        """Connections to the workers that were picked, best first, with what to show them."""
        own = self._credentials.metadata()
        stub = router_pb2_grpc.RouterStub(self._router)
        try:
            picked = await stub.Pick(rpc.pick(request), timeout=until_s - self._clock(), metadata=inject(own))
        except grpc.aio.AioRpcError:
            return  # the router itself says what is wrong when it is asked for the answer
        shown = (*own, (HEADER, picked.lease)) if picked.lease else own
        for candidate in picked.candidates:
            channel = await self._reached(candidate.address, until_s)
            if channel is not None:
                yield channel, shown

    async def _reached(self, address: str, until_s: float) -> grpc.aio.Channel | None:
        """A connection to the worker; None where there is none within a little of the time."""
        now_s = self._clock()
        if self._shunned.get(address, -math.inf) > now_s:
            return None
        if address not in self._channels:
            self._channels[address] = open_channel(address, self._credentials)
        channel = self._channels[address]
        try:
            await asyncio.wait_for(channel.channel_ready(), min(_CONNECT_S, _CONNECT_SHARE * (until_s - now_s)))
        except TimeoutError:
            self._shunned[address] = now_s + _SHUNNED_S
            return None
        return channel

    async def _received(
        self, rpc: Rpc, channel: grpc.aio.Channel, raw: bytes, until_s: float, metadata: Metadata
    ) -> AsyncGenerator[Any, None]:
        make: Any = channel.unary_stream if rpc.streams else channel.unary_unary
        method = make(rpc.path, response_deserializer=rpc.response.FromString)
        call = method(raw, timeout=max(0.0, until_s - self._clock()), metadata=inject(metadata))
        try:
            if not rpc.streams:
                yield await call
                return
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        finally:
            call.cancel()


def _is_lost(failure: HeadwayError) -> bool:
    """The connection broke; no server said so."""
    typed = isinstance(failure, RemoteError) and any(key == DETAILS_KEY for key, _ in failure.trailers)
    return failure.status is grpc.StatusCode.UNAVAILABLE and not typed
