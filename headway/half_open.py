"""Calls that were begun and whose message has not come: they are held for a while, and only so many of them.

gRPC's server waits for the one message of such a call for as long as the caller likes, and for as many as there are:
whoever can connect could fill its memory, without a key. So methods are served as if they took a stream, from which one
message is read here. Nor does it hold a connection's first calls to its limit on metadata, of which a few bytes may
unpack to much: it goes by what the client has agreed to, and that takes a round trip.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from headway.errors import BadInput, HeadwayError, to_trailers

_ENTRY_BYTES = 32
Deserializer = Callable[[bytes], Any]


class HalfOpenCalls:
    """Reads calls' messages. Where too many are waited for, the one that has waited longest is given up."""

    def __init__(self, *, most: int, patience_s: float) -> None:
        """`most`: calls that may wait at once; `patience_s`: how long each."""
        self._most, self._patience_s = most, patience_s
        self._waiting: dict[asyncio.Timeout, None] = {}  # in the order in which they came

    async def message(self, context: Any, read: Deserializer | None) -> Any:
        """The one message of the call with this gRPC context, whose handler takes a stream of bytes.

        Raises `BadInput` when it does not come, or `read` cannot read it.
        """
        try:
            async with asyncio.timeout(self._patience_s) as patience:
                self._wait(patience)
                try:
                    raw = await context.read()
                finally:
                    self._waiting.pop(patience, None)
        except TimeoutError:
            limit = f"within {self._patience_s:g} s, sooner where more than {self._most} are waited for"
            raise BadInput("request", f"its message must come {limit}") from None
        if not isinstance(raw, bytes):  # grpc.aio.EOF
            raise BadInput("request", "must have a message")
        try:
            return raw if read is None else read(raw)
        except DecodeError as error:
            raise BadInput("request", "is not a message of this method") from error

    def _wait(self, patience: asyncio.Timeout) -> None:
        if len(self._waiting) >= self._most:
            longest = next(iter(self._waiting))
            del self._waiting[longest]
            longest.reschedule(asyncio.get_running_loop().time())
        self._waiting[patience] = None

    def bounding(self, handler: Any) -> Any:
        """The same handler, its message read here. One that takes a stream, or runs in a thread, is left as it is."""
        behaviour: Any = handler.unary_stream if handler.response_streaming else handler.unary_unary
        if handler.request_streaming or not (
            inspect.iscoroutinefunction(behaviour) or inspect.isasyncgenfunction(behaviour)
        ):
            return handler
        if inspect.isasyncgenfunction(behaviour):
            return as_stream(handler, self._each(handler, behaviour))
        return as_stream(handler, self._once(handler, behaviour))

    def _each(self, handler: Any, behaviour: Any) -> Callable[[Any, Any], AsyncIterator[Any]]:
        async def bounded(_: Any, context: Any) -> AsyncIterator[Any]:
            request = await self._message_or_abort(context, handler.request_deserializer)
            async for message in behaviour(request, context):
                yield message

        return bounded

    def _once(self, handler: Any, behaviour: Any) -> Callable[[Any, Any], Any]:
        async def bounded(_: Any, context: Any) -> Any:
            return await behaviour(await self._message_or_abort(context, handler.request_deserializer), context)

        return bounded

    async def _message_or_abort(self, context: Any, read: Deserializer | None) -> Any:
        try:
            return await self.message(context, read)
        except BadInput as error:
            await context.abort(error.status, error.message)


def as_stream(handler: Any, behaviour: Any) -> Any:
    """A handler like this one whose `behaviour` gets a stream of bytes, and the context, from which it reads."""
    if handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(behaviour, None, handler.response_serializer)
    return grpc.stream_unary_rpc_method_handler(behaviour, None, handler.response_serializer)


def refusing(handler: Any, error: HeadwayError) -> Any:
    """A handler in place of this one that ends every call with `error`, before anything is read."""

    async def refuse(_: Any, context: Any) -> None:
        await context.abort(error.status, error.message, to_trailers(error))

    return as_stream(handler, refuse)


def metadata_bytes(metadata: Iterable[tuple[str, str | bytes]] | None) -> int:
    """The size of metadata as HTTP/2 counts it, unpacked."""
    return sum(len(name) + len(value) + _ENTRY_BYTES for name, value in metadata or ())
