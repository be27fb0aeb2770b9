"""Callers who keep to HTTP/2 and to nothing else: each is refused or cut off, and others are served meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from h2.events import ConnectionTerminated, StreamReset
from raw_http2 import RawHttp2, raw_http2
from test_router import answer

from headway.errors import from_rpc_error
from headway.requests import images_request
from headway.v1 import image_pb2_grpc

GENERATE = "/headway.v1.ImageGeneration/Generate"
CHECK = "/grpc.health.v1.Health/Check"
INVALID = str(grpc.StatusCode.INVALID_ARGUMENT.value[0])
EXHAUSTED = str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])


@asynccontextmanager
async def others(address: str) -> AsyncIterator[Any]:
    """A caller who does nothing wrong; served when the block ends, too."""
    async with grpc.aio.insecure_channel(address) as channel:

        async def served() -> None:
            call = image_pb2_grpc.ImageGenerationStub(channel).Generate(images_request(1), timeout=20)
            assert len(await answer(call)) == 6

        await served()
        yield served
        await served()


async def refused(raw: RawHttp2, call: int) -> str | None:
    """The status that a call ends with; None where it is reset, or the connection closed."""
    while (event := await raw.event()) is not None:
        if isinstance(event, ConnectionTerminated):
            return None
        if getattr(event, "stream_id", None) != call:
            continue
        if isinstance(event, StreamReset):
            return None
        told = {str(name): str(value) for name, value in getattr(event, "headers", None) or ()}
        if "grpc-status" in told:
            return told["grpc-status"]
    return None


async def next_refused(raw: RawHttp2) -> tuple[int, str]:
    """The next call that ends with a status, whichever it is."""
    while (event := await raw.event()) is not None:
        told = {str(name): str(value) for name, value in getattr(event, "headers", None) or ()}
        if "grpc-status" in told:
            return int(getattr(event, "stream_id", 0)), told["grpc-status"]
    raise ConnectionError("the server closed the connection")


@pytest.mark.parametrize("path", [GENERATE, CHECK])
async def test_a_call_whose_message_does_not_come_is_ended(mesh: Any, path: str) -> None:
    worker = await mesh.worker(settings={"max_deadline_s": 0.5})
    async with raw_http2(worker.address) as raw:
        told = await raw.ended(await raw.open(path))
    assert told["grpc-status"] == INVALID
    assert "its message must come within 0.5 s" in told["grpc-message"]


@pytest.mark.parametrize("path", [GENERATE, CHECK])
async def test_of_too_many_half_open_calls_the_oldest_are_ended(mesh: Any, path: str) -> None:
    worker = await mesh.worker(settings={"max_concurrent_rpcs": 8, "max_deadline_s": 60})
    async with others(worker.address) as served, raw_http2(worker.address) as raw:
        calls = [await raw.open(path) for _ in range(40)]
        ended = [await next_refused(raw) for _ in range(32)]
        await served()
        assert {status for _, status in ended} == {INVALID}
        assert {call for call, _ in ended} <= set(calls[:-1])  # which of two at once the server sees first is its own
        last = images_request(1) if path == GENERATE else health_pb2.HealthCheckRequest()
        await raw.message(calls[-1], last)
        assert (await raw.ended(calls[-1]))["grpc-status"] == "0"


async def test_half_open_calls_need_a_key_before_a_place(mesh: Any, tmp_path: Any) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"a secret of the mesh")
    worker = await mesh.worker(settings={"lease_secret": secret, "max_deadline_s": 60})
    async with raw_http2(worker.address) as raw:
        told = await raw.ended(await raw.open(GENERATE))
    assert told["grpc-status"] == str(grpc.StatusCode.UNAUTHENTICATED.value[0])


async def test_headers_that_unpack_to_much_more_are_refused(mesh: Any) -> None:
    """Four kilobytes once, then a thousand times by a byte each; as a connection's first call, and as a later one."""
    worker = await mesh.worker()
    bomb = [("x-bomb", "x" * 4000)] * 1000
    async with others(worker.address):
        for path in (GENERATE, CHECK) * 4:
            async with raw_http2(worker.address) as raw:
                assert await refused(raw, await raw.open(path, bomb)) in (INVALID, EXHAUSTED, None)
                later = await raw.open(path, bomb)
                assert await refused(raw, later) in (INVALID, EXHAUSTED, None)


async def test_a_flood_of_calls_that_are_reset_leaves_nothing_behind(mesh: Any) -> None:
    worker = await mesh.worker(closed=True)
    client = await mesh.router(worker)
    message = images_request(1)
    async with raw_http2(mesh.router_address) as raw:
        await raw.event()
        for _ in range(1000):
            call = await raw.open(GENERATE, [("grpc-timeout", "60S")])
            await raw.message(call, message)
            raw.h2.reset_stream(call)
        await raw.send()
        worker.engine.gate.set()
        await client.until(lambda workers: workers[0].in_flight == 0, within_s=60)
    async with others(mesh.router_address):
        pass


@pytest.mark.parametrize(
    ("framed", "statuses"),
    [
        (b"", {INVALID}),  # no message
        (b"\0\0\0\0\x04\xff\xff\xff\xff", {INVALID}),  # not a message of the contract
        (b"\0\x7f\xff\xff\xff" + b"x" * 100, {EXHAUSTED}),  # says that it has two gigabytes
        (b"\0\0\0\1\0" + b"x" * 10, {INVALID, "13", None}),  # is cut short
        (b"\1\0\0\0\x04\xff\xff\xff\xff", {INVALID, "13", "12", None}),  # says that it is packed, in no known way
    ],
)
async def test_messages_that_are_none_are_refused(mesh: Any, framed: bytes, statuses: set[str | None]) -> None:
    worker = await mesh.worker()
    async with others(worker.address), raw_http2(worker.address) as raw:
        call = await raw.open(GENERATE)
        raw.h2.send_data(call, framed, end_stream=True)
        await raw.send()
        assert await refused(raw, call) in statuses


async def test_bytes_that_are_no_message_name_what_is_wrong(mesh: Any) -> None:
    worker = await mesh.worker()
    async with grpc.aio.insecure_channel(worker.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await channel.unary_stream(GENERATE)(b"\xff\xff\xff", timeout=5).read()
        assert from_rpc_error(failure.value).violations == {"request": "is not a message of this method"}
        assert await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)


async def test_a_connection_that_is_no_http2_is_cut_off(mesh: Any) -> None:
    worker = await mesh.worker()
    host, _, port = worker.address.rpartition(":")
    async with others(worker.address):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\n\r\n" + b"\xff" * 4096)
        async with asyncio.timeout(30):
            while await reader.read(4096):
                pass
        writer.close()
