"""`Pick`, and our client that streams straight from the workers it names."""

import signal
from pathlib import Path
from typing import Any

import grpc
import pytest

from headway.client import AsyncHeadway
from headway.errors import HeadwayError, RemoteError
from headway.lease import HEADER, LeaseSigner
from headway.requests import images_request, render_request, text_request
from headway.v1 import common_pb2, router_pb2, text_pb2_grpc, worker_pb2, worker_pb2_grpc

SECRET = b"a secret of the mesh"


def pick(**fields: Any) -> router_pb2.PickRequest:
    return router_pb2.PickRequest(**({"kind": common_pb2.KIND_IMAGE, "items": 1} | fields))


async def tokens(stream: Any) -> list[int]:
    return [token async for message in stream for token in message.chunk.token_ids]


async def test_ranks_workers_and_says_when_each_would_be_done(mesh: Any) -> None:
    quick, slow = await mesh.worker(name="quick"), await mesh.worker(name="slow", step_ms=50)
    client = await mesh.router(quick, slow)
    picked = await client.router.Pick(pick(), timeout=10)
    assert [candidate.address for candidate in picked.candidates] == [quick.address, slow.address]
    assert [candidate.worker_id for candidate in picked.candidates] == ["image-quick", "image-slow"]
    assert picked.candidates[0].predicted_p50_ms < picked.candidates[1].predicted_p50_ms
    assert picked.candidates[0].rung.label == "4"
    assert picked.lease == b""


async def test_what_was_picked_counts_as_sent_until_reports_know_better(mesh: Any) -> None:
    workers = [await mesh.worker(name=name, step_ms=20, closed=True) for name in ("one", "two")]
    client = await mesh.router(*workers)
    first, second = [(await client.router.Pick(pick(), timeout=10)).candidates for _ in range(2)]
    assert [candidate.predicted_p50_ms for candidate in first] == [80, 80]
    # The same worker would batch it with what it is to get; the other one shares the device with that work.
    assert [candidate.predicted_p50_ms for candidate in second] == [80, 160]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (pick(kind=0), "kind"),
        (pick(asset="/etc/passwd"), "not known|unknown|no "),
        (pick(kind=common_pb2.KIND_TEXT), "no healthy worker"),
        (pick(kind=common_pb2.KIND_TEXT, prompt=b"T" * ((1 << 16) + 1)), "prompt: must be at most 65536 bytes"),
        (pick(kind=common_pb2.KIND_TEXT, prompt=b"no mark"), "prompt: must begin with"),
        (pick(prompt=b"Ta frame has none"), "prompt: must be empty"),
    ],
)
async def test_bad_picks_are_refused(mesh: Any, request_: router_pb2.PickRequest, said: str) -> None:
    client = await mesh.router(await mesh.worker())
    with pytest.raises(grpc.aio.AioRpcError, match=said):
        await client.router.Pick(request_, timeout=5)


async def test_our_client_streams_straight_from_the_worker(mesh: Any) -> None:
    workers = [await mesh.worker(kind) for kind in ("image", "text", "splat")]
    await mesh.router(*workers)
    async with AsyncHeadway(mesh.router_address, direct=True) as direct:
        assert await tokens(direct.text(text_request("abc"), deadline_s=10)) == [3, 6, 9, 12]
        parts = [part async for part in direct.images(images_request(3), deadline_s=10)]
        assert [part.WhichOneof("part") for part in parts] == ["plan", *["batch"] * 4, "summary"]
        assert (await direct.render(render_request("", width=5), deadline_s=10)).frame.data == b"20"
    assert [len(worker.servicer.budgets) for worker in workers] == [1, 1, 1]
    sample = mesh.router_service.metrics.registry.get_sample_value
    passed_on = [sample("headway_budget_seconds_count", {"kind": kind}) for kind in ("image", "text", "splat")]
    assert not any(passed_on)


async def test_without_a_lease_or_a_router_a_worker_takes_nothing(mesh: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    worker = await mesh.worker("text", settings={"lease_secret": secret})
    client = await mesh.router(worker, lease_secret=secret)
    async with grpc.aio.insecure_channel(worker.address) as channel:
        stub = text_pb2_grpc.TextGenerationStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match="no lease") as refused:
            await stub.Generate(text_request("abc"), timeout=5).read()
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        picked = await client.router.Pick(pick(kind=common_pb2.KIND_TEXT), timeout=5)
        leased = ((HEADER, picked.lease),)
        assert await tokens(stub.Generate(text_request("abc"), timeout=5, metadata=leased)) == [3, 6, 9, 12]
        with pytest.raises(grpc.aio.AioRpcError, match="used before"):
            await stub.Generate(text_request("abc"), timeout=5, metadata=leased).read()
        picked = await client.router.Pick(pick(kind=common_pb2.KIND_TEXT), timeout=5)
        leased = ((HEADER, picked.lease),)
        with pytest.raises(grpc.aio.AioRpcError, match="not one of the operators") as refused:
            await worker_pb2_grpc.WorkerStub(channel).Drain(worker_pb2.DrainRequest(), timeout=5, metadata=leased)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        other = ((HEADER, LeaseSigner(lambda: [SECRET]).sign("acme", ["text-other"])),)
        with pytest.raises(grpc.aio.AioRpcError, match="another worker"):
            await stub.Generate(text_request("abc"), timeout=5, metadata=other).read()
    assert await tokens(client.text.Generate(text_request("abc"), timeout=5)) == [3, 6, 9, 12]
    async with AsyncHeadway(mesh.router_address, direct=True) as direct:
        assert await tokens(direct.text(text_request("abc"), deadline_s=5)) == [3, 6, 9, 12]


async def test_the_router_goes_on_when_the_picked_worker_dies(mesh: Any, worker_process: Any) -> None:
    first = await worker_process("text", "2")
    other = await mesh.worker("text", name="other", step_ms=5)
    await mesh.router(f"text={first.address}", other)
    async with AsyncHeadway(mesh.router_address, direct=True) as direct:
        stream = direct.text(text_request("abc"), deadline_s=20)
        messages = [await anext(stream) for _ in range(3)]
        first.process.send_signal(signal.SIGKILL)
        messages += [message async for message in stream]
    assert [token for message in messages for token in message.chunk.token_ids] == [3, 6, 9, 12]
    assert [message.WhichOneof("part") for message in messages] == ["plan", *["chunk"] * 4, "summary"]
    assert messages[-1].summary.usage.completion_tokens == 4
    assert messages[-1].summary.served.worker_id == "text-other"


async def test_a_direct_client_of_a_worker_without_pick_calls_it_as_ever(mesh: Any) -> None:
    worker = await mesh.worker("text")
    async with AsyncHeadway(worker.address, direct=True) as direct:
        assert await tokens(direct.text(text_request("abc"), deadline_s=5)) == [3, 6, 9, 12]
        with pytest.raises(HeadwayError) as refused:
            await tokens(direct.text(text_request("abc", model="none"), deadline_s=5))
        assert isinstance(refused.value, RemoteError)
        assert refused.value.reason_name == "NOT_FOUND"
