"""The router over real workers: passing on, deadlines, cancelling, refusals, workers that die and come back."""

import asyncio
import hashlib
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from sum_worker import ASSET_HASH

from headway.errors import RemoteError, from_rpc_error
from headway.requests import images_request, render_request, service_level, text_request
from headway.v1 import errors_pb2, image_pb2, router_pb2, splat_pb2, text_pb2, worker_pb2, worker_pb2_grpc

LOST, DRAINING = router_pb2.WORKER_HEALTH_LOST, router_pb2.WORKER_HEALTH_DRAINING


async def told(call: Any) -> RemoteError:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await (call if isinstance(call, grpc.aio.UnaryUnaryCall) else answer(call))
    return from_rpc_error(failure.value)


async def answer(call: Any) -> list[Any]:
    """The messages that are left; the call may have been read from."""
    messages = []
    while (message := await call.read()) is not grpc.aio.EOF:
        messages.append(message)
    await call.code()
    return messages


async def who_serves(client: Any) -> str:
    messages = await answer(client.images.Generate(images_request(1), timeout=5))
    return str(messages[-1].summary.served.worker_id)


def health_of(workers: Any, address: str) -> Any:
    return next(worker.health for worker in workers if worker.address == address)


async def test_passes_on_all_three_kinds(mesh: Any) -> None:
    workers = [await mesh.worker(kind) for kind in ("image", "text", "splat")]
    client = await mesh.router(*workers)
    messages = await answer(client.images.Generate(images_request(3), timeout=5))
    assert [message.WhichOneof("part") for message in messages] == ["plan", *["batch"] * 4, "summary"]
    assert messages[0].plan.rung.label == "4"
    served = messages[-1].summary.served
    assert (served.worker_id, served.attempts, served.asset_hash) == ("image-one", 1, ASSET_HASH)
    assert messages[-2].batch.images[0].data == b"12"
    messages = await answer(client.text.Generate(text_request("abc"), timeout=5))
    assert [message.chunk.text for message in messages[1:-1]] == ["3 ", "6 ", "9 ", "12 "]
    frame = await client.splats.Render(render_request("", width=5), timeout=5)
    assert (frame.frame.data, frame.plan.rung.label, frame.served.worker_id) == (b"20", "4", "splat-one")
    tokens = await client.text.Tokenize(text_pb2.TokenizeRequest(text="ab"), timeout=5)
    assert list(tokens.ids) == [97, 98]


async def test_the_deadline_shrinks_by_the_hop_and_a_missing_one_is_set(mesh: Any) -> None:
    worker = await mesh.worker()
    client = await mesh.router(worker, return_reserve_ms=100)
    await answer(client.images.Generate(images_request(1), timeout=2))
    await answer(client.images.Generate(images_request(1)))
    shrunk_s, set_s = worker.servicer.budgets
    assert 0 < shrunk_s <= 1.9
    assert 0 < set_s <= 29.9


async def test_unknown_fields_and_trailing_metadata_pass_through(mesh: Any) -> None:
    worker = await mesh.worker()
    client = await mesh.router(worker)
    unknown = b"\xfa\x3f\x03new"  # field 1023, which this version does not know
    raw = images_request(1, seed=1).SerializeToString() + unknown
    call = client.channel.unary_stream("/headway.v1.ImageGeneration/Generate")(raw, timeout=5)
    assert len(await answer(call)) == 6
    assert dict(await call.trailing_metadata())["sum-worker"] == "image-one"


async def test_trailers_say_what_was_served_for_who_cannot_read_the_messages(mesh: Any) -> None:
    worker = await mesh.worker()
    client = await mesh.router(worker)
    call = client.images.Generate(images_request(1, level=service_level(exact="2")), timeout=5)
    served = (await answer(call))[-1].summary.served
    told = dict(await call.trailing_metadata())
    assert (told["headway-rung"], told["headway-reason"], told["headway-worker"]) == ("2", "exact", "image-one")
    assert (float(told["headway-quality"]), told["headway-slack-ms"]) == (0.8, f"{served.slack_ms:.1f}")


async def test_cancelling_reaches_the_worker_within_one_step(mesh: Any) -> None:
    worker = await mesh.worker(closed=True)
    client = await mesh.router(worker)
    call = client.images.Generate(images_request(1), timeout=20)
    assert (await call.read()).HasField("plan")
    call.cancel()
    (ticket,) = [work.ticket for work in worker.loop._works.values()]
    async with asyncio.timeout(5):
        while not ticket.cancelled:
            await client.workers()  # a round trip
        worker.engine.gate.set()
        while worker.engine.released == 0:
            await worker.loop.changes().wait()
    assert ticket.steps_executed <= 1


async def test_a_flood_of_cancels_leaves_nothing_behind(mesh: Any) -> None:
    worker = await mesh.worker(closed=True)
    client = await mesh.router(worker)
    calls = [client.images.Generate(images_request(1), timeout=20) for _ in range(60)]
    await asyncio.gather(*(call.read() for call in calls[:30]))
    for call in calls:
        call.cancel()
    worker.engine.gate.set()
    await client.until(lambda workers: workers[0].in_flight == 0)
    assert len(await answer(client.images.Generate(images_request(1), timeout=5))) == 6
    drained = await client.router.Drain(router_pb2.DrainRouterRequest(), timeout=5)
    assert drained.finished == 0


async def test_a_deadline_that_passes_ends_the_call_on_every_hop(mesh: Any) -> None:
    worker = await mesh.worker(closed=True)
    client = await mesh.router(worker)
    error = await told(client.images.Generate(images_request(1), timeout=0.3))
    assert error.status is grpc.StatusCode.DEADLINE_EXCEEDED
    worker.engine.gate.set()
    async with asyncio.timeout(5):
        while worker.engine.released == 0:
            await worker.loop.changes().wait()


async def test_a_workers_refusals_and_errors_come_through_unchanged(mesh: Any) -> None:
    worker = await mesh.worker()
    client = await mesh.router(worker)
    bad = await told(client.images.Generate(images_request(2000), timeout=5))
    assert bad.violations == {"labels": "each must be at most 1000"}


async def test_the_least_budget_that_would_do_counts_the_hop(mesh: Any) -> None:
    worker = await mesh.worker(step_ms=2000)
    client = await mesh.router(worker, return_reserve_ms=300)
    too_small = await told(client.images.Generate(images_request(1), timeout=1))
    assert too_small.reason == errors_pb2.ERROR_REASON_BUDGET_TOO_SMALL
    assert ("grpc-retry-pushback-ms", "-1") in too_small.trailers
    least_s = float(too_small.metadata["least_budget_ms"]) / 1000
    assert 2.3 < least_s < 3
    nearly = await told(client.images.Generate(images_request(1), timeout=2.25))
    assert nearly.reason == errors_pb2.ERROR_REASON_BUDGET_TOO_SMALL
    # a little more: the machine may be busy
    assert len(await answer(client.images.Generate(images_request(1), timeout=least_s + 0.2))) == 3


async def test_a_shed_request_is_told_when_to_come_back(mesh: Any) -> None:
    worker = await mesh.worker(step_ms=1000, closed=True)
    client = await mesh.router(worker)
    level = service_level(exact="4")
    # Whoever comes while the first step runs begins behind it, so they need five steps' time and not four.
    holding = [client.images.Generate(images_request(1, level=level), timeout=6.5) for _ in range(8)]
    for call in holding:
        await call.read()
    shed = await told(client.images.Generate(images_request(1, level=level), timeout=5.5))
    assert (shed.status, shed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, errors_pb2.ERROR_REASON_SHED)
    assert shed.retry_after_s is not None
    pushback = dict(shed.trailers)["grpc-retry-pushback-ms"]
    assert int(pushback) == round(shed.retry_after_s * 1000)
    worker.engine.gate.set()
    for call in holding:
        await answer(call)


async def test_where_one_worker_refuses_the_next_is_asked_and_said_so(mesh: Any) -> None:
    full, free = await mesh.worker(name="full"), await mesh.worker(name="free", step_ms=1.01)
    client = await mesh.router(full, free)
    full.loop._draining = True  # refuses, before its next report says so
    messages = await answer(client.images.Generate(images_request(1), timeout=5))
    served = messages[-1].summary.served
    assert (served.worker_id, served.attempts) == ("image-free", 2)
    frames = [message for message in messages if message.HasField("batch")]
    assert [message.batch.images[0].data for message in frames] == [b"1", b"2", b"3", b"4"]


async def test_drained_workers_are_listed_and_left_alone(mesh: Any) -> None:
    first, second = await mesh.worker(name="first"), await mesh.worker(name="second")
    client = await mesh.router(first, second)
    async with grpc.aio.insecure_channel(first.address) as channel:
        await worker_pb2_grpc.WorkerStub(channel).Drain(worker_pb2.DrainRequest(), timeout=5)
    await client.until(lambda workers: health_of(workers, first.address) == DRAINING)
    messages = await answer(client.images.Generate(images_request(1), timeout=5))
    assert messages[-1].summary.served.worker_id == "image-second"
    assert messages[-1].summary.served.attempts == 1


async def test_work_goes_where_it_ends_soonest(mesh: Any) -> None:
    slow, quick = await mesh.worker(name="slow", step_ms=400), await mesh.worker(name="quick", step_ms=100)
    client = await mesh.router(slow, quick)
    messages = await answer(client.images.Generate(images_request(1), timeout=1))
    assert messages[-1].summary.served.worker_id == "image-quick"


async def test_a_burst_between_two_reports_is_spread(mesh: Any) -> None:
    workers = [await mesh.worker(name=name, step_ms=50, closed=True) for name in ("a", "b")]
    client = await mesh.router(*workers)
    calls = [client.images.Generate(images_request([1] * 8), timeout=20) for _ in range(8)]
    for call in calls:
        await call.read()
    assert {len(worker.servicer.budgets) for worker in workers} == {4}
    for worker in workers:
        worker.engine.gate.set()
    for call in calls:
        await answer(call)


async def test_a_killed_worker_is_out_within_a_second_and_comes_back(mesh: Any, worker_process: Any) -> None:
    killed = await worker_process("image")
    other = await mesh.worker(name="other", step_ms=5)
    client = await mesh.router(f"image={killed.address}", other)
    assert await who_serves(client) == "image-process"
    killed.process.send_signal(signal.SIGKILL)
    await client.until(lambda workers: health_of(workers, killed.address) == LOST, within_s=1)
    assert await who_serves(client) == "image-other"
    entry = next(worker for worker in await client.workers() if worker.address == killed.address)
    assert entry.detail
    again = await mesh.worker(name="again", listen=killed.address)
    await client.until(lambda workers: health_of(workers, killed.address) != LOST, within_s=5)
    assert await who_serves(client) == "image-again"
    assert again.servicer.budgets


async def test_a_silent_worker_is_lost_and_one_that_speaks_again_is_back(mesh: Any, worker_process: Any) -> None:
    silent = await worker_process("image")
    client = await mesh.router(f"image={silent.address}")
    silent.process.send_signal(signal.SIGSTOP)
    await client.until(lambda workers: health_of(workers, silent.address) == LOST, within_s=2)
    assert (await told(client.images.Generate(images_request(1), timeout=5))).reason_name == "NO_WORKER"
    silent.process.send_signal(signal.SIGCONT)
    await client.until(lambda workers: health_of(workers, silent.address) != LOST, within_s=5)


async def test_a_worker_lost_in_the_middle_is_said_and_what_was_streamed_stands(mesh: Any, worker_process: Any) -> None:
    lost = await worker_process("image", "0")
    client = await mesh.router(f"image={lost.address}", failover_wait_s=0)
    call = client.images.Generate(images_request(1), timeout=20)
    assert (await call.read()).HasField("plan")
    lost.process.send_signal(signal.SIGKILL)
    error = await told(call)
    assert error.reason == errors_pb2.ERROR_REASON_WORKER_LOST
    assert error.retry_after_s is not None


async def test_no_worker_unknown_assets_and_bad_levels_are_refused_here(mesh: Any) -> None:
    worker = await mesh.worker()
    client = await mesh.router(worker, "text=127.0.0.1:1", healthy=1)
    error = await told(client.text.Generate(text_request("a"), timeout=5))
    assert (error.status, error.reason_name) == (grpc.StatusCode.UNAVAILABLE, "NO_WORKER")
    assert error.retry_after_s is not None
    error = await told(client.images.Generate(images_request(1, model="/etc/passwd"), timeout=5))
    assert (error.reason_name, error.metadata["known"]) == ("NOT_FOUND", "sums")
    error = await told(client.images.Generate(images_request(1, level=service_level(exact="9")), timeout=5))
    assert error.reason_name == "NO_SUCH_RUNG"
    error = await told(client.images.Generate(images_request(1, level=service_level(at_least="tokens=5")), timeout=5))
    assert list(error.violations) == ["service_level.at_least"]
    raw = client.channel.unary_stream("/headway.v1.ImageGeneration/Generate")(b"\xff\xff", timeout=5)
    assert list((await told(raw)).violations) == ["request"]
    assert worker.servicer.budgets == []


async def test_the_router_shows_workers_its_own_key_and_never_the_callers(mesh: Any, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("mesh-key\n")
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"router: [{hashlib.sha256(b'mesh-key').hexdigest()}]\n")
    worker = await mesh.worker(settings={"api_keys": keys})
    client = await mesh.router(worker, upstream_api_key=tmp_path / "key")
    call = client.images.Generate(images_request(1), timeout=5, metadata=(("authorization", "Bearer callers"),))
    await answer(call)
    assert worker.servicer.metadata[0]["authorization"] == "Bearer mesh-key"
    keyless = await mesh.router(worker, healthy=0)
    await keyless.until(lambda workers: "API key" in workers[0].detail)


async def test_models_of_all_workers_are_listed_once(mesh: Any) -> None:
    workers = [
        await mesh.worker(name="a", assets=("sums", "twice")),
        await mesh.worker(name="b", assets=("sums",)),
        await mesh.worker(name="c", assets=("other",)),
    ]
    client = await mesh.router(*workers)
    listed = await client.images.ListModels(image_pb2.ListImageModelsRequest(), timeout=5)
    assert [model.name for model in listed.models] == ["sums", "twice", "other"]
    assert listed.models[0].classes == 10


async def test_a_client_made_from_reflection_finds_every_service(mesh: Any) -> None:
    client = await mesh.router(await mesh.worker())
    stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="headway.v1.ImageGeneration"),
    ]
    listed, described = [reply async for reply in stub.ServerReflectionInfo(iter(asked), timeout=5)]
    names = {service.name.removeprefix("headway.v1.") for service in listed.list_services_response.service}
    assert {"TextGeneration", "ImageGeneration", "SplatRendering", "Router", "grpc.health.v1.Health"} <= names
    assert described.file_descriptor_response.file_descriptor_proto


async def test_draining_the_router_finishes_what_it_passes_on(mesh: Any) -> None:
    worker = await mesh.worker(closed=True)
    client = await mesh.router(worker)
    call = client.images.Generate(images_request(1), timeout=20)
    await call.read()
    draining = asyncio.ensure_future(client.router.Drain(router_pb2.DrainRouterRequest(), timeout=20))
    async with asyncio.timeout(5):
        while (await told(client.images.Generate(images_request(1), timeout=0.2))).reason_name != "DRAINING":
            pass
    worker.engine.gate.set()
    assert len(await answer(call)) == 5
    assert (await draining).finished >= 1


async def test_only_operators_may_drain_or_change_scenes_where_callers_are_known(mesh: Any, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("".join(f"{name}: [{hashlib.sha256(name.encode()).hexdigest()}]\n" for name in ("acme", "ops")))
    as_acme, as_ops = ((("authorization", f"Bearer {name}"),) for name in ("acme", "ops"))
    worker = await mesh.worker("splat")
    client = await mesh.router(worker, api_keys=keys, operators="ops", metadata=as_acme)
    load, unload = splat_pb2.LoadSceneRequest(scene="x"), splat_pb2.UnloadSceneRequest(scene="x")
    for call in (
        client.router.Drain(router_pb2.DrainRouterRequest(), timeout=5, metadata=as_acme),
        client.splats.UnloadScene(unload, timeout=5, metadata=as_acme),
        client.splats.LoadScene(load, timeout=5, metadata=as_acme),
    ):
        assert (await told(call)).status is grpc.StatusCode.PERMISSION_DENIED
    frame = await client.splats.Render(render_request("", width=5), timeout=5, metadata=as_acme)
    assert frame.served.worker_id == "splat-one"
    drained = await client.router.Drain(router_pb2.DrainRouterRequest(), timeout=5, metadata=as_ops)
    assert drained.finished == 0
