import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from benchmarks.faults.proxy import Proxy


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


@asynccontextmanager
async def echo(folder: Path) -> AsyncIterator[str]:
    """A server that sends back what it gets."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
            await writer.drain()
        await closed(writer)

    server = await asyncio.start_unix_server(serve, folder / "echo.sock")
    try:
        yield f"unix:{folder}/echo.sock"
    finally:
        server.close()


async def connected(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = proxy.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def test_bytes_pass_both_ways(tmp_path: Path) -> None:
    async with echo(tmp_path) as target, Proxy(target) as proxy:
        reader, writer = await connected(proxy)
        writer.write(b"there and back")
        assert await reader.readexactly(14) == b"there and back"
        await closed(writer)


async def test_a_black_hole_holds_bytes_until_it_is_over(tmp_path: Path) -> None:
    async with echo(tmp_path) as target, Proxy(target) as proxy:
        reader, writer = await connected(proxy)
        hole = asyncio.create_task(proxy.black_hole(0.3))
        await asyncio.sleep(0)  # it begins
        writer.write(b"held")
        arrives = asyncio.create_task(reader.readexactly(4))
        done, _ = await asyncio.wait([hole, arrives], return_when=asyncio.FIRST_COMPLETED)
        assert done == {hole}
        assert await arrives == b"held"
        await closed(writer)


async def test_a_reset_is_a_reset_and_others_may_connect_after_it(tmp_path: Path) -> None:
    async with echo(tmp_path) as target, Proxy(target) as proxy:
        reader, writer = await connected(proxy)
        writer.write(b"1")
        await reader.readexactly(1)
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        await closed(writer)
        reader, writer = await connected(proxy)
        writer.write(b"2")
        assert await reader.readexactly(1) == b"2"
        await closed(writer)


async def test_nobody_behind_it_closes_the_connection(tmp_path: Path) -> None:
    async with Proxy(f"unix:{tmp_path}/nobody.sock") as proxy:
        reader, writer = await connected(proxy)
        assert await reader.read() == b""
        await closed(writer)
