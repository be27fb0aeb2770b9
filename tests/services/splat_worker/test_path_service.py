"""Paths, videos and progressive frames over a real server with the scene that ships, and through the router."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import av
import grpc
import numpy as np
import pytest
from splat_rig import CARD, RUNG_S, TIMEOUT_S, rung_costs_s, worker

from headway.errors import from_rpc_error
from headway.server import serve
from headway.telemetry import Span
from headway.v1 import (
    common_pb2,
    errors_pb2,
    router_pb2,
    router_pb2_grpc,
    splat_pb2,
    splat_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from services.router.config import RouterConfig
from services.router.main import build as build_router

RAW = common_pb2.PIXEL_FORMAT_RAW
EXACT_TOP = common_pb2.ServiceLevel(exact="100%@1")
LOWEST = CARD.ladder.rungs[-1].label
NAN = float("nan")
PATH_TIMEOUT_S = 29.0


def key(x: float, **fields: Any) -> splat_pb2.Camera:
    place, target = splat_pb2.Vector3(x=x, y=1.5, z=4.0), splat_pb2.Vector3(y=0.5)
    return splat_pb2.Camera(look_at=splat_pb2.LookAtCamera(**({"position": place, "target": target} | fields)))


def ask(*cameras: splat_pb2.Camera, width: int = 96, height: int = 64, **fields: Any) -> splat_pb2.RenderPathRequest:
    given = {"width": width, "height": height} | fields.pop("options", {"format": RAW})
    keys = cameras or (key(-1), key(0), key(1))
    return splat_pb2.RenderPathRequest(cameras=keys, options=splat_pb2.FrameOptions(**given), **fields)


def started(channel: grpc.aio.Channel, request: Any, timeout_s: float = PATH_TIMEOUT_S) -> Any:
    return splat_pb2_grpc.SplatRenderingStub(channel).RenderPath(request, timeout=timeout_s)


async def walked(channel: grpc.aio.Channel, request: Any, timeout_s: float = PATH_TIMEOUT_S) -> list[Any]:
    return [part async for part in started(channel, request, timeout_s)]


def frames_of(parts: list[Any]) -> list[splat_pb2.PathFrame]:
    return [part.frame for part in parts if part.WhichOneof("part") == "frame"]


async def rest_of(call: Any) -> list[Any]:
    """What is left of a stream of which something was read."""
    parts = []
    while (part := await call.read()) is not grpc.aio.EOF:
        parts.append(part)
    return parts


async def failure(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    return from_rpc_error(raised.value)


async def test_a_path_is_planned_then_streamed_in_order_then_summed_up(channel: grpc.aio.Channel) -> None:
    parts = await walked(channel, ask(frames_between=2, service_level=EXACT_TOP))
    plan, served, frames = parts[0].plan, parts[-1].served, frames_of(parts)
    assert (plan.steps, plan.rung.label, plan.reason) == (7, "100%@1", common_pb2.RUNG_REASON_EXACT)
    assert [frame.index for frame in frames] == list(range(7))
    assert len(parts) == 9
    assert (served.steps_planned, served.steps_executed, served.rung.label, served.quality) == (7, 7, "100%@1", 1.0)
    assert [stage.stage for stage in served.stages] == ["path", "render", "encode"]
    assert 0 < served.slack_ms < served.budget_ms
    assert all(frame.served.slack_ms > 0 for frame in frames)


async def test_the_frame_of_a_key_is_what_render_gives_and_others_lie_between(channel: grpc.aio.Channel) -> None:
    request = ask(key(-1), key(1), frames_between=1, service_level=EXACT_TOP)
    first, middle, last = (frame.frame.data for frame in frames_of(await walked(channel, request)))
    stub = splat_pb2_grpc.SplatRenderingStub(channel)
    alone = splat_pb2.RenderRequest(camera=key(1), options=request.options, service_level=EXACT_TOP)
    assert (await stub.Render(alone, timeout=TIMEOUT_S)).frame.data == last
    assert len({first, middle, last}) == 3
    again = frames_of(await walked(channel, request))
    assert [frame.frame.data for frame in again] == [first, middle, last]


async def test_explicit_cameras_are_rendered_as_they_are(channel: grpc.aio.Channel) -> None:
    parts = await walked(channel, ask(key(0), key(0), key(0.5), service_level=EXACT_TOP))
    first, second, third = (frame.frame.data for frame in frames_of(parts))
    assert first == second != third


async def test_a_path_can_begin_with_a_later_frame(channel: grpc.aio.Channel) -> None:
    whole = frames_of(await walked(channel, ask(frames_between=1, service_level=EXACT_TOP)))
    parts = await walked(channel, ask(frames_between=1, first_frame=3, service_level=EXACT_TOP))
    assert parts[0].plan.steps == 2
    rest = frames_of(parts)
    assert [(frame.index, frame.frame.data) for frame in rest] == [(f.index, f.frame.data) for f in whole[3:]]


async def test_each_frame_of_a_rate_has_a_budget_of_its_own(channel: grpc.aio.Channel) -> None:
    request = ask(frames_between=9, frames_per_second=10.0)
    request.start_delay.FromSeconds(5)
    frames = frames_of(await walked(channel, request))
    assert [frame.index for frame in frames] == list(range(21))
    rendered = [frame for frame in frames if frame.HasField("frame")]
    assert rendered and all(frame.served.budget_ms <= 5000 + 100 * frame.index for frame in rendered)


async def test_too_little_time_for_all_frames_at_the_lowest_rung_is_refused(slow_channel: grpc.aio.Channel) -> None:
    request = ask(*[key(0)] * 8, width=512, height=512)
    room_s = 2 * list((await rung_costs_s(slow_channel)).values())[-1]  # of the eight that it would take
    error = await failure(started(slow_channel, request, room_s))
    assert error.reason_name == "BUDGET_TOO_SMALL"
    assert float(error.metadata["least_budget_ms"]) > 1000 * room_s


async def test_a_slow_reader_bounds_what_is_rendered_and_late_frames_are_skipped_and_said_so(
    channel: grpc.aio.Channel,
) -> None:
    request = ask(key(-1), key(1), width=1024, height=1024, frames_between=38, frames_per_second=20.0)
    call = started(channel, request)
    assert (await call.read()).HasField("plan")
    last_due_s = 1.0 + 39 / 20
    await asyncio.sleep(last_due_s + 0.3)  # the reader that is slow
    parts = await rest_of(call)
    frames, served = frames_of(parts), parts[-1].served
    assert [frame.index for frame in frames] == list(range(40))
    skipped = [frame for frame in frames if not frame.HasField("frame")]
    assert skipped and all(not frame.HasField("served") for frame in skipped)
    late = {errors_pb2.ERROR_REASON_SHED, errors_pb2.ERROR_REASON_BUDGET_TOO_SMALL, errors_pb2.ERROR_REASON_EXPIRED}
    assert {frame.skipped for frame in skipped} <= late
    assert served.steps_executed == 40 - len(skipped)
    assert served.quality == pytest.approx(sum(frame.served.quality for frame in frames) / 40)


async def test_a_cancelled_path_leaves_nothing_behind(channel: grpc.aio.Channel) -> None:
    call = started(channel, ask(key(-1), key(1), width=256, height=256, frames_between=100, options={}))
    for _ in range(2):
        await call.read()
    call.cancel()
    await nothing_is_left(channel)


async def nothing_is_left(channel: grpc.aio.Channel) -> None:
    watch = worker_pb2_grpc.WorkerStub(channel).Watch(worker_pb2.WatchWorkerRequest(), timeout=TIMEOUT_S)
    async for report in watch:
        if report.in_flight == 0 and not report.loads:
            break
    else:
        pytest.fail("the worker's reports ended")
    watch.cancel()


async def test_a_path_that_was_admitted_is_finished_while_the_worker_drains(channel: grpc.aio.Channel) -> None:
    call = started(channel, ask(key(-1), key(1), frames_between=10))
    await call.read()
    draining = worker_pb2_grpc.WorkerStub(channel).Drain(worker_pb2.DrainRequest(), timeout=TIMEOUT_S)
    frames = frames_of(await rest_of(call))
    assert [frame.index for frame in frames] == list(range(12))
    assert any(frame.HasField("frame") for frame in frames[-4:])
    assert errors_pb2.ERROR_REASON_DRAINING not in {frame.skipped for frame in frames}
    await draining
    assert (await failure(started(channel, ask()))).reason_name == "DRAINING"


BAD = [
    (ask(), {"cameras": []}, "cameras"),
    (ask(*[key(0)] * 1025), {}, "cameras"),
    (ask(frames_between=1800), {}, "frames_between"),
    (ask(width=4096, height=2024, frames_between=600, options={}), {}, "options.width"),
    (ask(first_frame=3), {}, "first_frame"),
    (ask(frames_per_second=-1.0), {}, "frames_per_second"),
    (ask(frames_per_second=NAN), {}, "frames_per_second"),
    (ask(video_frames_per_second=-1.0), {}, "video_frames_per_second"),
    (ask(frames_per_second=241.0), {}, "frames_per_second"),
    (ask(key(0), key(0, position=splat_pb2.Vector3(x=NAN))), {}, "cameras[1].look_at.position"),
    (ask(key(0), splat_pb2.Camera(matrices=splat_pb2.MatrixCamera())), {}, "cameras[1].matrices.viewmat"),
    (ask(width=0), {}, "options.width"),
    (ask(video=7, options={}), {}, "video"),
    (ask(video=1), {}, "options.format"),
    (ask(video=1, width=97, options={}), {}, "options.width"),
    (ask(service_level=common_pb2.ServiceLevel(priority=9)), {}, "service_level.priority"),
]


async def test_bad_paths_are_refused_by_field(channel: grpc.aio.Channel) -> None:
    found = []
    for request, cleared, _ in BAD:
        for field in cleared:
            request.ClearField(field)
        error = await failure(started(channel, request))
        assert error.status is grpc.StatusCode.INVALID_ARGUMENT
        found.append(next(iter(error.violations)))
    assert found == [field for _, _, field in BAD]
    backwards = ask(frames_per_second=10.0)
    backwards.start_delay.FromSeconds(-1)
    assert list((await failure(started(channel, backwards))).violations) == ["start_delay"]


async def test_a_video_is_one_file_that_plays_and_is_the_same_again(channel: grpc.aio.Channel) -> None:
    request = ask(frames_between=6, options={}, service_level=EXACT_TOP, video_frames_per_second=12.0, video=1)
    parts = await walked(channel, request)
    file = b"".join(part.video for part in parts)
    assert sum(1 for part in parts if part.WhichOneof("part") == "video") >= 2  # it comes while it is made
    assert all(frame.HasField("frame") and not frame.frame.data for frame in frames_of(parts))
    with av.open(io.BytesIO(file)) as opened:
        assert opened.streams.video[0].codec_context.name == "h264"
        pictures = [frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)]
    assert [picture.shape for picture in pictures] == [(64, 96, 3)] * 15
    stills = ask(frames_between=6, service_level=EXACT_TOP)
    still = frames_of(await walked(channel, stills))[7].frame.data
    error = np.mean((pictures[7].ravel().astype(float) - np.frombuffer(still, dtype=np.uint8)) ** 2)
    assert 10 * np.log10(255**2 / error) > 30
    assert b"".join(part.video for part in await walked(channel, request)) == file


async def test_progressive_frames_get_better_and_each_says_how_good_it_is(channel: grpc.aio.Channel) -> None:
    request = splat_pb2.RenderRequest(options=splat_pb2.FrameOptions(width=512, height=512, format=RAW))
    stub = splat_pb2_grpc.SplatRenderingStub(channel)
    parts = [part async for part in stub.RenderProgressive(request, timeout=TIMEOUT_S)]
    frames = frames_of(parts)
    assert parts[0].plan.rung.label == frames[0].served.rung.label == LOWEST
    assert [frame.index for frame in frames] == list(range(len(frames)))
    qualities = [frame.served.quality for frame in frames]
    assert qualities == sorted(set(qualities))
    assert (frames[-1].served.rung.label, parts[-1].served.rung.label) == ("100%@1", "100%@1")
    assert parts[-1].served.steps_executed == len(frames) >= 2
    top = splat_pb2.RenderRequest(options=request.options, service_level=EXACT_TOP)
    assert (await stub.Render(top, timeout=TIMEOUT_S)).frame.data == frames[-1].frame.data


async def test_progressive_keeps_a_floor_and_stops_at_its_deadline(slow_channel: grpc.aio.Channel) -> None:
    floor = common_pb2.ServiceLevel(at_least=common_pb2.QualityFloor(psnr_db=30.0))
    request = splat_pb2.RenderRequest(options=splat_pb2.FrameOptions(width=512, height=512), service_level=floor)
    stub = splat_pb2_grpc.SplatRenderingStub(slow_channel)
    timeout_s, frames = 0.5 * RUNG_S, []
    while not frames:  # a host that slows down between two calls is told of in the second
        try:
            frames = frames_of([part async for part in stub.RenderProgressive(request, timeout=timeout_s)])
        except grpc.aio.AioRpcError as error:
            refused = from_rpc_error(error)
            assert refused.reason_name == "BUDGET_TOO_SMALL"
            timeout_s = 1.5 * float(refused.metadata["least_budget_ms"]) / 1000
    assert timeout_s > RUNG_S
    assert all(frame.served.rung.psnr_db >= 30.0 or frame.served.rung.label == "100%@1" for frame in frames)


@asynccontextmanager
async def router(worker_address: str) -> AsyncIterator[grpc.aio.Channel]:
    stop, port = asyncio.Event(), asyncio.get_running_loop().create_future()
    config = RouterConfig(listen="127.0.0.1:0", workers=f"splat={worker_address}", metrics_port=None, drain_s=0.2)
    run = serve(
        config, "router", partial(build_router, config), span=Span.ROUTER_CALL, until=stop.wait, ready=port.set_result
    )
    task = asyncio.create_task(run)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{await port}") as connected:
        mesh = router_pb2_grpc.RouterStub(connected)
        while not await healthy(mesh):
            pass
        yield connected
    stop.set()
    await asyncio.wait_for(task, 20)


async def healthy(mesh: router_pb2_grpc.RouterStub) -> bool:
    listed = await mesh.ListWorkers(router_pb2.ListWorkersRequest(), timeout=TIMEOUT_S)
    return any(worker.health == router_pb2.WORKER_HEALTH_HEALTHY for worker in listed.workers)


async def test_paths_and_progressive_frames_pass_through_the_router(calibrations: Path, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/worker.sock"
    async with worker(cache_dir=calibrations, listen=address) as channel, router(address) as routed:
        await both_answer_alike(channel, routed)


async def both_answer_alike(channel: grpc.aio.Channel, routed: grpc.aio.Channel) -> None:
    request = ask(frames_between=3, service_level=EXACT_TOP)
    direct = frames_of(await walked(channel, request))
    passed = await walked(routed, request)
    assert [frame.frame.data for frame in frames_of(passed)] == [frame.frame.data for frame in direct]
    assert passed[-1].served.steps_executed == 9
    view = splat_pb2.RenderRequest(options=splat_pb2.FrameOptions(width=64, height=64))
    stub = splat_pb2_grpc.SplatRenderingStub(routed)
    assert len([part async for part in stub.RenderProgressive(view, timeout=TIMEOUT_S)]) >= 3
    assert list((await failure(started(routed, ask(frames_between=1800)))).violations) == ["frames_between"]
    call = started(routed, ask(key(-1), key(1), width=256, height=256, frames_between=100, options={}))
    await call.read()
    call.cancel()
    await nothing_is_left(channel)
