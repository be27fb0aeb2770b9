"""The endpoint picker, asked as a gateway asks it. `test_behind_envoy_picking.py` puts the real Envoy in its place."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import grpc
import pytest
from gateway import IMAGES, HttpRequest, decoded
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headway.config import ConfigError, read
from headway.errors import BadInput, Shed, to_trailers
from headway.lease import HEADER, LeaseCheck
from headway.requests import images_request, service_level, text_request
from headway.v1 import errors_pb2, ext_proc_pb2, router_pb2
from services.router.config import RouterConfig
from services.router.http_call import Timeout, to_wire

SECRET = b"a secret of the mesh"
HEALTHY, EJECTED = router_pb2.WORKER_HEALTH_HEALTHY, router_pb2.WORKER_HEALTH_EJECTED


async def picking(mesh: Any, *workers: Any, **settings: Any) -> Any:
    return await mesh.router(*workers, endpoint_picker=True, **settings)


def count(mesh: Any, name: str, **labels: str) -> float:
    found = mesh.router_service.metrics.registry.get_sample_value(f"headway_{name}", labels)
    return 0.0 if found is None else found


async def states(client: Any) -> dict[str, int]:
    return {worker.address: worker.health for worker in await client.workers()}


def ended(mesh: Any, outcome: str) -> float:
    return count(mesh, "requests_total", kind="image", outcome=outcome, tenant="default")


async def test_a_request_goes_to_the_worker_that_serves_it_best_with_what_is_left_of_its_time(mesh: Any) -> None:
    quick, slow = await mesh.worker(name="quick"), await mesh.worker(name="slow", step_ms=50)
    client = await picking(mesh, quick, slow, return_reserve_ms=100)
    for piece_bytes in (1 << 20, 3):
        request = HttpRequest(client.channel)
        answer = await request.ask(images_request(3), timeout="9S", piece_bytes=piece_bytes)
        assert request.endpoint == quick.address
        left_s = Timeout.read(request.headers["grpc-timeout"]).seconds
        assert left_s is not None and 0 < left_s <= 8.9
        assert answer.request_headers.response.clear_route_cache
        assert {"authorization", HEADER} == set(answer.request_headers.response.header_mutation.remove_headers)
        await request.responds()
    assert ended(mesh, "ok") == 2
    assert count(mesh, "budget_seconds_count", kind="image") == 2


async def test_a_long_body_goes_on_in_pieces_that_gateways_take(mesh: Any) -> None:
    client = await picking(mesh, await mesh.worker("text"))
    request = HttpRequest(client.channel)
    await request.ask(text_request("word " * 40_000), path="/headway.v1.TextGeneration/Generate", piece_bytes=16_384)
    assert len(request.body) > 200_000


async def test_it_says_nothing_of_where_before_the_message_is_whole(mesh: Any) -> None:
    client = await picking(mesh, await mesh.worker())
    request = HttpRequest(client.channel)
    await request.head()
    await request.send(request_body=ext_proc_pb2.HttpBody(body=b"\0\0\0\0\x05he"))
    await client.workers()  # a round trip
    await request.send(request_body=ext_proc_pb2.HttpBody(body=b"l", end_of_stream=True))
    request.first = await request.call.read()
    assert isinstance(request.refused, Exception)
    assert request.refused.reason == errors_pb2.ERROR_REASON_BAD_INPUT


async def test_only_endpoints_of_the_subset_are_picked(mesh: Any) -> None:
    quick, slow = await mesh.worker(name="quick"), await mesh.worker(name="slow", step_ms=50)
    client = await picking(mesh, quick, slow)
    for subset in ([slow.address, "10.0.0.1:80"], f"10.0.0.1:80, {slow.address}"):
        request = HttpRequest(client.channel)
        await request.ask(images_request(3), subset=subset)
        assert request.endpoint == slow.address
        request.call.cancel()
    for subset in ([], ["10.0.0.1:80"]):
        request = HttpRequest(client.channel)
        answer = await request.ask(images_request(3), subset=subset)
        assert request.refused.reason == errors_pb2.ERROR_REASON_NO_WORKER
        assert answer.immediate_response.status.code == 503


async def test_a_drain_waits_for_what_was_placed(mesh: Any) -> None:
    client = await picking(mesh, await mesh.worker())
    requests = [HttpRequest(client.channel) for _ in range(2)]
    for request in requests:
        await request.ask(images_request(3))
    draining = client.router.Drain(router_pb2.DrainRouterRequest(), timeout=20)
    await client.workers()  # a round trip
    assert not draining.done()
    for request in requests:
        await request.responds()
    assert (await draining).finished == 2


async def test_spares_are_named_and_feedback_says_whose_fault_it_was(mesh: Any) -> None:
    workers = [await mesh.worker(name=name) for name in ("one", "two", "three")]
    client = await picking(mesh, *workers, endpoint_picker_spares=1)
    quick = [worker.address for worker in workers[:2]]
    for _ in range(3):
        request = HttpRequest(client.channel)
        await request.ask(images_request(3), subset=quick)
        first, second = request.endpoint.split(",")
        assert {first, second} == set(quick)
        await request.responds((("grpc-status", "14"), ("grpc-message", "reset")), served=quick[1])
    assert await states(client) == {quick[0]: HEALTHY, quick[1]: EJECTED, workers[2].address: HEALTHY}


@pytest.mark.parametrize(
    ("asked", "status", "http", "reason"),
    [
        ({"timeout": "0S"}, grpc.StatusCode.DEADLINE_EXCEEDED, 504, errors_pb2.ERROR_REASON_EXPIRED),
        ({"timeout": "soon"}, grpc.StatusCode.INVALID_ARGUMENT, 400, errors_pb2.ERROR_REASON_BAD_INPUT),
        (
            {"path": "/headway.v1.Router/Drain"},
            grpc.StatusCode.UNIMPLEMENTED,
            501,
            errors_pb2.ERROR_REASON_UNIMPLEMENTED,
        ),
        (
            {"path": "/headway.v1.TextGeneration/Generate"},
            grpc.StatusCode.UNAVAILABLE,
            503,
            errors_pb2.ERROR_REASON_NO_WORKER,
        ),
        (
            {"mode": ext_proc_pb2.BUFFERED},
            grpc.StatusCode.UNIMPLEMENTED,
            501,
            errors_pb2.ERROR_REASON_UNIMPLEMENTED,
        ),
        ({"mode": 77}, grpc.StatusCode.UNIMPLEMENTED, 501, errors_pb2.ERROR_REASON_UNIMPLEMENTED),
    ],
)
async def test_refusals_are_grpcs_own_and_http_where_that_is_spoken(
    mesh: Any, asked: dict[str, Any], status: grpc.StatusCode, http: int, reason: int
) -> None:
    client = await picking(mesh, await mesh.worker())
    request = HttpRequest(client.channel)
    answer = (await request.ask(images_request(3), **asked)).immediate_response
    assert (request.refused.status, answer.status.code, request.refused.reason) == (status, http, reason)
    assert " " not in answer.details


async def test_an_older_gateway_that_does_not_say_how_it_sends_bodies_is_taken_at_the_protocols_word(mesh: Any) -> None:
    worker = await mesh.worker()
    client = await picking(mesh, worker)
    request = HttpRequest(client.channel)
    await request.ask(images_request(3), mode=None)
    assert request.endpoint == worker.address


async def test_a_budget_too_small_even_for_an_idle_worker_says_what_would_do(mesh: Any) -> None:
    client = await picking(mesh, await mesh.worker(step_ms=2000), return_reserve_ms=300)
    request = HttpRequest(client.channel)
    await request.ask(images_request(1), timeout="1S")
    assert request.refused.reason == errors_pb2.ERROR_REASON_BUDGET_TOO_SMALL
    assert int(request.refused.metadata["least_budget_ms"]) >= 2300
    again = HttpRequest(client.channel)
    await again.ask(images_request(1), timeout="20S")
    assert again.endpoint
    assert ended(mesh, "too_small") == 1


async def test_what_cannot_be_in_time_behind_others_is_shed_with_the_time_to_come_back(mesh: Any) -> None:
    client = await picking(mesh, await mesh.worker(step_ms=1000, closed=True))
    level, holding = service_level(exact="4"), []
    for _ in range(8):
        holding.append(HttpRequest(client.channel))
        await holding[-1].ask(images_request(1, level=level), timeout="5S")
    request = HttpRequest(client.channel)
    await request.ask(images_request(1, level=level), timeout="6S")
    assert request.refused.reason == errors_pb2.ERROR_REASON_SHED
    assert request.refused.status is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert request.refused.retry_after_s is not None
    pushback = dict(request.refused.trailers)["grpc-retry-pushback-ms"]  # type: ignore[attr-defined]
    assert int(pushback) == round(request.refused.retry_after_s * 1000)
    assert count(mesh, "refusals_total", kind="image", reason="SHED") == 1


async def test_a_workers_refusal_is_counted_as_what_it_was(mesh: Any) -> None:
    client = await picking(mesh, await mesh.worker())
    for error, outcome in ((Shed("full", retry_after_s=1), "shed"), (BadInput("labels", "are bad"), "bad_input")):
        request = HttpRequest(client.channel)
        await request.ask(images_request(1))
        told = [(name, value.decode()) for name, value in to_wire(to_trailers(error))]
        await request.refuses(("grpc-status", str(error.status.value[0])), *told)
        assert ended(mesh, outcome) == 1


async def test_a_worker_whose_calls_fail_behind_the_gateway_is_left_out(mesh: Any) -> None:
    workers = [await mesh.worker(name=name) for name in ("one", "two", "three")]
    client = await picking(mesh, *workers)
    (bad, *_) = workers
    for _ in range(3):
        request = HttpRequest(client.channel)
        await request.ask(images_request(1), subset=[bad.address])
        await request.refuses(("grpc-status", "14"), ("grpc-message", "upstream connect error"))
    assert (await states(client))[bad.address] == EJECTED


async def test_a_caller_who_leaves_frees_what_was_held(mesh: Any) -> None:
    worker = await mesh.worker(closed=True)
    client = await picking(mesh, worker)
    requests = [HttpRequest(client.channel) for _ in range(20)]
    for request in requests:
        await request.ask(images_request(1))
    for request in requests:
        request.call.cancel()
    async with asyncio.timeout(10):
        while ended(mesh, "cancelled") < 20:
            await client.workers()  # a round trip
    assert (await client.router.Drain(router_pb2.DrainRouterRequest(), timeout=5)).finished == 0


async def test_keys_name_the_tenant_and_workers_get_a_lease_instead(mesh: Any, tmp_path: Path) -> None:
    keys, secret, quotas = tmp_path / "keys.yaml", tmp_path / "secret", tmp_path / "quotas.yaml"
    keys.write_text("".join(f"{name}: [{hashlib.sha256(name.encode()).hexdigest()}]\n" for name in ("acme", "poor")))
    secret.write_bytes(SECRET)
    quotas.write_text("poor: {calls_in_flight: 1}\n")
    worker = await mesh.worker(settings={"lease_secret": secret})
    client = await picking(
        mesh, worker, api_keys=keys, lease_secret=secret, quotas=quotas, metadata=(("authorization", "Bearer acme"),)
    )
    request = HttpRequest(client.channel)
    await request.ask(images_request(1), ("authorization", "Bearer acme"), (HEADER, "Zm9yZ2Vk"))
    assert LeaseCheck(lambda: [SECRET]).tenant(decoded(request.headers[HEADER]), "image-one") == "acme"
    assert list(request.first.request_headers.response.header_mutation.remove_headers) == ["authorization"]
    for headers in ((), (("authorization", "Bearer nobody"),)):
        request = HttpRequest(client.channel)
        await request.ask(images_request(1), *headers)
        assert request.refused.status is grpc.StatusCode.UNAUTHENTICATED
    holding, request = HttpRequest(client.channel), HttpRequest(client.channel)
    await holding.ask(images_request(1), ("authorization", "Bearer poor"))
    await request.ask(images_request(1), ("authorization", "Bearer poor"))
    assert request.refused.reason == errors_pb2.ERROR_REASON_TOO_MANY_CALLS
    assert request.refused.metadata["quota"] == "calls_in_flight"
    await holding.responds()
    again = HttpRequest(client.channel)
    await again.ask(images_request(1), ("authorization", "Bearer poor"))
    assert again.endpoint == worker.address


async def test_workers_that_want_a_key_are_shown_the_routers(mesh: Any, tmp_path: Path) -> None:
    own = tmp_path / "key"
    own.write_text("the routers own\n")
    client = await picking(mesh, await mesh.worker(), upstream_api_key=own)
    request = HttpRequest(client.channel)
    await request.ask(images_request(1), ("authorization", "Bearer the callers"))
    assert request.headers["authorization"] == "Bearer the routers own"
    assert list(request.first.request_headers.response.header_mutation.remove_headers) == [HEADER]


async def test_the_callers_trace_goes_on_to_the_worker(mesh: Any) -> None:
    client = await picking(mesh, await mesh.worker())
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    request = HttpRequest(client.channel)
    await request.ask(images_request(1), ("traceparent", f"00-{trace_id}-00f067aa0ba902b7-01"))
    assert request.headers["traceparent"].split("-")[1] == trace_id


async def test_the_limit_on_calls_holds_for_requests_of_a_gateway_too(mesh: Any) -> None:
    client = await picking(mesh, await mesh.worker(), max_concurrent_rpcs=2)
    holding = [HttpRequest(client.channel) for _ in range(2)]
    for each in holding:
        await each.ask(images_request(1))
    request = HttpRequest(client.channel)
    await request.ask(images_request(1))
    assert request.refused.reason == errors_pb2.ERROR_REASON_TOO_MANY_CALLS


async def test_a_router_that_drains_places_nothing_new(mesh: Any) -> None:
    client = await picking(mesh, await mesh.worker())
    await client.router.Drain(router_pb2.DrainRouterRequest(), timeout=5)
    request = HttpRequest(client.channel)
    answer = await request.ask(images_request(1))
    assert request.refused.reason == errors_pb2.ERROR_REASON_DRAINING
    assert answer.immediate_response.status.code == 503


async def test_it_is_off_unless_asked_for_and_has_a_health_of_its_own(mesh: Any) -> None:
    worker = await mesh.worker()
    off = await mesh.router(worker)
    assert await HttpRequest(off.channel).call.code() is grpc.StatusCode.UNIMPLEMENTED
    on = await picking(mesh, worker)
    service = health_pb2.HealthCheckRequest(service="envoy.service.ext_proc.v3.ExternalProcessor")
    check = await health_pb2_grpc.HealthStub(on.channel).Check(service, timeout=5)
    assert check.status == health_pb2.HealthCheckResponse.SERVING


def test_workers_on_a_unix_socket_cannot_be_picked() -> None:
    with pytest.raises(ConfigError, match="endpoint_picker needs workers at HOST:PORT"):
        read(RouterConfig, ["--workers", "text=unix:/x", "--endpoint-picker"], prog="headway-router", env={})


async def test_a_stream_that_begins_with_no_headers_is_refused(mesh: Any) -> None:
    client = await picking(mesh, await mesh.worker())
    request = HttpRequest(client.channel)
    await request.send(request_body=ext_proc_pb2.HttpBody(body=b"x"))
    request.first = await request.call.read()
    assert request.refused.status is grpc.StatusCode.UNIMPLEMENTED
    assert IMAGES not in request.refused.message
