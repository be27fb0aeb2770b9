"""gRPC as HTTP/2 frames, for what gRPC's own client hides from who uses it, or would never send."""

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, ResponseReceived, TrailersReceived

Headers = Iterable[tuple[str, str]]


class RawHttp2:
    """One connection; yields what the server says as h2's events."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self._arrived: list[Event] = []

    async def send(self) -> None:
        """Puts on the wire what `h2` was told."""
        self._writer.write(self.h2.data_to_send())
        await self._writer.drain()

    async def open(self, path: str, headers: Headers = ()) -> int:
        """Begins a call; returns its stream. Nothing of its message is sent."""
        stream = self.h2.get_next_available_stream_id()
        own = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "raw")]
        self.h2.send_headers(stream, [*own, ("te", "trailers"), ("content-type", "application/grpc"), *headers])
        await self.send()
        return stream

    async def message(self, stream: int, message: Any, *, ended: bool = True) -> None:
        """Sends a whole message; `ended`: the caller has no more to say."""
        raw = message.SerializeToString()
        self.h2.send_data(stream, b"\0" + struct.pack(">I", len(raw)) + raw, end_stream=ended)
        await self.send()

    async def event(self) -> Event | None:
        """The next event; None at the connection's end."""
        while not self._arrived:
            data = await self._reader.read(65536)
            if not data:
                return None
            self._arrived = list(self.h2.receive_data(data))
            await self.send()
        return self._arrived.pop(0)

    async def ended(self, stream: int) -> dict[str, str]:
        """The call's headers and trailers, once it has ended."""
        told: dict[str, str] = {}
        while (event := await self.event()) is not None:
            if isinstance(event, DataReceived):
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                await self.send()
            if isinstance(event, ResponseReceived | TrailersReceived) and event.stream_id == stream:
                told |= {str(name): str(value) for name, value in event.headers or ()}
                if "grpc-status" in told:
                    return told
        raise ConnectionError("the server closed the connection")


@asynccontextmanager
async def raw_http2(address: str) -> AsyncIterator[RawHttp2]:
    """A connection in the clear."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield RawHttp2(reader, writer)
    finally:
        writer.close()
