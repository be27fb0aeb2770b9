"""The gateway's side of the endpoint picker protocol, message by message."""

import asyncio
import base64
import contextlib
from collections.abc import Iterable
from typing import Any

import grpc

from headway.errors import HeadwayError
from headway.v1 import ext_proc_pb2, ext_proc_pb2_grpc
from services.router.ext_proc import DESTINATION, LB, SERVED, SUBSET, SUBSET_HINT
from services.router.http_call import Ended

IMAGES = "/headway.v1.ImageGeneration/Generate"
WHOLE = ext_proc_pb2.FULL_DUPLEX_STREAMED
SERVES = (("grpc-status", "0"),)


def framed(request: Any) -> bytes:
    """A gRPC message as it is in a body."""
    raw: bytes = request.SerializeToString()
    return b"\0" + len(raw).to_bytes(4, "big") + raw


def header_map(pairs: Iterable[tuple[str, str]]) -> ext_proc_pb2.HeaderMap:
    headers = [ext_proc_pb2.HeaderValue(key=key, raw_value=value.encode()) for key, value in pairs]
    return ext_proc_pb2.HeaderMap(headers=headers)


class HttpRequest:
    """One HTTP request and its response, as the gateway tells the picker of them."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.call = ext_proc_pb2_grpc.ExternalProcessorStub(channel).Process(timeout=30)
        self.first: Any = None
        """What the headers were answered with."""
        self.body = b""
        """What goes on to the endpoint."""

    async def send(self, **part: Any) -> None:
        await self.call.write(ext_proc_pb2.ProcessingRequest(**part))

    async def head(
        self,
        *headers: tuple[str, str],
        path: str = IMAGES,
        subset: Any = None,
        mode: Any = WHOLE,
        timeout: str | None = "9S",
    ) -> None:
        """Sends the headers. `subset`: addresses to pick from; `mode` None: it is not said how bodies come."""
        pairs = [(":method", "POST"), (":path", path), ("content-type", "application/grpc"), *headers]
        if timeout is not None:
            pairs.append(("grpc-timeout", timeout))
        request = ext_proc_pb2.ProcessingRequest()
        request.request_headers.headers.CopyFrom(header_map(pairs))
        if mode is not None:
            request.protocol_config.request_body_mode = request.protocol_config.response_body_mode = mode
        if subset is not None:
            request.metadata_context.filter_metadata[SUBSET_HINT].update({SUBSET: subset})
        await self.call.write(request)

    async def ask(self, request: Any, *headers: tuple[str, str], piece_bytes: int = 1 << 20, **head: Any) -> Any:
        """Sends headers and body in pieces; the answer to the headers, or the answer that takes the worker's place."""
        reading, body = asyncio.create_task(self.call.read()), framed(request)
        # A refusal may come, and end the stream, before all is sent.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self.head(*headers, **head)
            for begin in range(0, len(body), piece_bytes):
                await self.send(request_body=ext_proc_pb2.HttpBody(body=body[begin : begin + piece_bytes]))
            await self.send(request_body=ext_proc_pb2.HttpBody(end_of_stream=True))
        self.first = await reading
        if self.first.HasField("immediate_response"):
            return self.first
        ended = False
        while not ended:
            streamed = (await self.call.read()).request_body.response.body_mutation.streamed_response
            self.body += streamed.body
            ended = streamed.end_of_stream
        assert self.body == body
        return self.first

    @property
    def headers(self) -> dict[str, str]:
        """What the headers become."""
        mutation = self.first.request_headers.response.header_mutation
        return {option.header.key: option.header.raw_value.decode() for option in mutation.set_headers}

    @property
    def endpoint(self) -> str:
        """Where it goes, by header and by metadata, which must agree."""
        told: str = self.first.dynamic_metadata[LB][DESTINATION]
        assert self.headers[DESTINATION] == told
        return told

    @property
    def refused(self) -> HeadwayError:
        """The refusal, as a gRPC caller reads it."""
        answer = self.first.immediate_response
        pairs = [(option.header.key, option.header.raw_value.decode()) for option in answer.headers.set_headers]
        ended = Ended.read(
            [("grpc-status", str(answer.grpc_status.status)), ("grpc-message", answer.body.decode()), *pairs]
        )
        assert ended is not None
        error = ended.error()
        assert error is not None
        return error

    async def responds(self, trailers: Iterable[tuple[str, str]] = SERVES, served: str | None = None) -> None:
        """The endpoint answers: a message, and its trailers."""
        begun = ext_proc_pb2.ProcessingRequest()
        begun.response_headers.headers.CopyFrom(header_map([(":status", "200")]))
        if served is not None:
            begun.metadata_context.filter_metadata[LB].update({SERVED: served})
        await self.call.write(begun)
        assert (await self.call.read()).HasField("response_headers")
        await self.send(response_body=ext_proc_pb2.HttpBody(body=b"piece"))
        piece = (await self.call.read()).response_body.response.body_mutation.streamed_response
        assert (piece.body, piece.end_of_stream) == (b"piece", False)
        await self.send(response_trailers=ext_proc_pb2.HttpTrailers(trailers=header_map(trailers)))
        assert (await self.call.read()).HasField("response_trailers")
        assert await self.call.read() is grpc.aio.EOF

    async def refuses(self, *trailers: tuple[str, str]) -> None:
        """The endpoint answers with trailers alone."""
        headers = ext_proc_pb2.HttpHeaders(headers=header_map([(":status", "200"), *trailers]), end_of_stream=True)
        await self.send(response_headers=headers)
        assert (await self.call.read()).HasField("response_headers")
        assert await self.call.read() is grpc.aio.EOF


def decoded(value: str) -> bytes:
    """A binary header's bytes."""
    return base64.b64decode(value)
