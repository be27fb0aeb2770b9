"""A TCP proxy between two parts of a mesh that can fail as networks do.

The part behind it listens on a Unix socket: a TCP port could be taken by somebody else while the part starts again.
"""

import asyncio
import socket
import struct
from contextlib import suppress
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 1 << 16
_ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER on, 0 s: closing sends a reset."""


class Proxy:
    """Passes bytes on to `target`, which is unix:PATH. A context manager; belongs to one event loop."""

    def __init__(self, target: str) -> None:
        self._path = target.removeprefix("unix:")
        self._passes = asyncio.Event()
        self._passes.set()
        self._writers, self._serving = set[asyncio.StreamWriter](), set[asyncio.Task[None]]()
        self._server: asyncio.Server | None = None
        self.address = ""
        """Where callers connect; known once it is entered."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self._passes.set()
        self.reset()
        await asyncio.gather(*self._serving)

    async def black_hole(self, seconds: float) -> None:
        """Nothing arrives in either direction, and nobody is told; what was held arrives afterwards, as TCP has it."""
        self._passes.clear()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._passes.set()

    def reset(self) -> None:
        """Ends every connection with a reset on both sides."""
        for writer in self._writers:
            socket_of: socket.socket = writer.get_extra_info("socket")
            with suppress(OSError):  # of a Unix socket, which just closes
                socket_of.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await self._passes.wait()
            await self._both_ways(reader, writer)
        except OSError:  # nobody listens: the caller is told by a closed connection
            pass
        finally:
            self._serving.discard(task)
            await _closed(writer)

    async def _both_ways(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(self._path)
        self._writers |= {writer, back}
        ways = [asyncio.create_task(self._pass(reader, back)), asyncio.create_task(self._pass(there, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._writers -= {writer, back}
            await _closed(back)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                await self._passes.wait()
                writer.write(data)
                await writer.drain()


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
