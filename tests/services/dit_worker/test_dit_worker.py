"""The image worker as a real server over loopback with the model that ships."""

import asyncio
import io
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from PIL import Image

from headway.errors import from_rpc_error
from headway.server import StartError, serve
from headway.telemetry import Span
from headway.v1 import common_pb2, image_pb2, image_pb2_grpc, worker_pb2, worker_pb2_grpc
from services.dit_worker.config import DitWorkerConfig
from services.dit_worker.costs import PROBE_SIZE, usable_cores
from services.dit_worker.main import build

MODEL = Path(__file__).parents[3] / "models" / "dit-digits"
TIMEOUT_S = 20.0
SLOWER = 40.0


@asynccontextmanager
async def worker(**settings) -> AsyncIterator[grpc.aio.Channel]:
    port = asyncio.get_running_loop().create_future()
    config = DitWorkerConfig(**({"listen": "127.0.0.1:0", "metrics_port": None, "threads": 1, "drain_s": 5} | settings))
    task = asyncio.create_task(
        serve(config, "dit-worker", partial(build, config), span=Span.WORKER_CALL, ready=port.set_result)
    )
    await asyncio.wait([task, port], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port.result()}") as channel:
            yield channel
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(task, 20)


@pytest.fixture(scope="session")
def calibrations(tmp_path_factory) -> Path:
    """Kept for the session, so that one start measures this host and the others find it measured."""
    return tmp_path_factory.mktemp("calibrations")


@pytest.fixture
async def channel(calibrations) -> AsyncIterator[grpc.aio.Channel]:
    async with worker(cache_dir=calibrations) as connected:
        yield connected


@pytest.fixture
async def slow_channel(calibrations, tmp_path) -> AsyncIterator[grpc.aio.Channel]:
    """A worker that was calibrated on a host far slower than this one, so that deadlines of seconds bind."""
    async with worker(cache_dir=calibrations, max_batch=128):
        pass
    for path in calibrations.glob("*.json"):
        file = json.loads(path.read_text())
        for points in file["curves"].values():
            # Small batches stay as they are: by one of them a worker knows how quick this host is now.
            for point in [point for point in points if point["batch"] > PROBE_SIZE]:
                point["mean_ms"] *= SLOWER
                point["var_ms2"] = 0.0
        (tmp_path / path.name).write_text(json.dumps(file))
    # On a busy host a few such steps take minutes, and neither limit is what is tested.
    patience = {"max_deadline_s": 3600.0, "default_target_s": 3600.0}
    async with worker(cache_dir=tmp_path, max_batch=128, **patience) as connected:
        yield connected


def ask(labels=(7,), **fields) -> image_pb2.GenerateImagesRequest:
    return image_pb2.GenerateImagesRequest(labels=labels, **fields)


SIXTY_FOUR = ask([1], count=64, format=common_pb2.PIXEL_FORMAT_RAW)
AT_LEAST_TWO = ask(
    [1],
    count=64,
    format=common_pb2.PIXEL_FORMAT_RAW,
    service_level=common_pb2.ServiceLevel(at_least=common_pb2.QualityFloor(nfe=2)),
)


async def generate(channel, request, timeout_s: float = TIMEOUT_S):
    """(plan, images, summary), in which order is checked."""
    stub = image_pb2_grpc.ImageGenerationStub(channel)
    parts = [part async for part in stub.Generate(request, timeout=timeout_s)]
    kinds = [part.WhichOneof("part") for part in parts]
    assert kinds[0] == "plan"
    assert kinds[-1] == "summary"
    assert set(kinds[1:-1]) == {"batch"}
    images = [image for part in parts[1:-1] for image in part.batch.images]
    return parts[0].plan, images, parts[-1].summary


async def plan_of(channel, request, timeout_s: float):
    """The promise alone; leaves the call at once."""
    call = image_pb2_grpc.ImageGenerationStub(channel).Generate(request, timeout=timeout_s)
    first = await call.read()
    call.cancel()
    return first.plan


async def failure(channel, request, timeout_s: float = TIMEOUT_S):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in image_pb2_grpc.ImageGenerationStub(channel).Generate(request, timeout=timeout_s):
            pass
    return from_rpc_error(raised.value)


async def state(channel) -> worker_pb2.WorkerState:
    call = worker_pb2_grpc.WorkerStub(channel).Watch(worker_pb2.WatchWorkerRequest(), timeout=TIMEOUT_S)
    first = await call.read()
    call.cancel()
    return first


async def step_s(channel) -> float:
    """What a step over 64 images is said to take."""
    return next(cost.mean_ms for cost in (await state(channel)).step_costs if cost.batch == 64) / 1000


def floats(image: image_pb2.Image) -> np.ndarray:
    return np.frombuffer(image.data, dtype="<f4").reshape(image.height, image.width, image.channels)


async def test_with_time_to_spare_the_top_rung_is_served(channel):
    plan, images, summary = await generate(channel, ask([7], count=64, seed=1))
    served = summary.served
    assert (plan.rung.label, plan.steps, plan.reason) == ("4", 4, common_pb2.RUNG_REASON_BEST_FIT)
    assert (served.rung.label, served.steps_executed, served.quality) == ("4", 4, 1.0)
    assert [stage.stage for stage in served.stages] == ["queue", "steps", "encode"]
    assert 0 < served.slack_ms < served.budget_ms
    assert served.worker_id == plan.worker_id
    assert sorted(image.index for image in images) == list(range(64))
    assert all(image.label == 7 and image.nfe == 4 for image in images)
    pixels = np.stack([np.array(Image.open(io.BytesIO(image.data))) for image in images])
    assert pixels.shape == (64, 8, 8)
    assert len({image.data for image in images}) == 64


async def test_the_seed_alone_decides_the_noise(channel):
    exact = common_pb2.ServiceLevel(exact="2")
    first = await generate(channel, ask([3, 4], service_level=exact))
    again = await generate(channel, ask([3, 4], seed=first[2].seed, service_level=exact))
    other = await generate(channel, ask([3, 4], seed=first[2].seed + 1, service_level=exact))
    assert [image.data for image in first[1]] == [image.data for image in again[1]]
    assert [image.data for image in first[1]] != [image.data for image in other[1]]


async def test_batches_across_requests_give_what_each_gives_alone(channel):
    form = common_pb2.PIXEL_FORMAT_FLOAT32
    rungs = ["4", "1", "2", "4", "2"]
    requests = [
        ask(range(10), seed=i, format=form, service_level=common_pb2.ServiceLevel(exact=rung))
        for i, rung in enumerate(rungs)
    ]
    together = await asyncio.gather(*(generate(channel, request) for request in requests))
    for rung, request, (_, images, summary) in zip(rungs, requests, together, strict=True):
        assert summary.served.rung.label == rung
        _, alone, _ = await generate(channel, request)
        for one, other in zip(images, alone, strict=True):
            np.testing.assert_allclose(floats(one), floats(other), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("steps_of_budget", "rung"), [(9.0, "4"), (3.5, "2"), (1.8, "1")])
async def test_a_shorter_deadline_buys_fewer_steps(slow_channel, steps_of_budget, rung):
    timeout_s = steps_of_budget * await step_s(slow_channel)
    assert (await plan_of(slow_channel, SIXTY_FOUR, timeout_s)).rung.label == rung


async def test_a_hopeless_deadline_is_told_what_would_do(slow_channel):
    one_step_s = await step_s(slow_channel)
    error = await failure(slow_channel, SIXTY_FOUR, 0.5 * one_step_s)
    assert error.reason_name == "BUDGET_TOO_SMALL"
    assert float(error.metadata["least_budget_ms"]) > 1000 * one_step_s
    assert ("grpc-retry-pushback-ms", "-1") in error.trailers


async def test_a_floor_is_kept(slow_channel):
    plan = await plan_of(slow_channel, AT_LEAST_TWO, 3.5 * await step_s(slow_channel))
    assert (plan.rung.label, plan.reason) == ("2", common_pb2.RUNG_REASON_FLOOR)


async def test_a_floor_that_cannot_be_kept_is_refused(slow_channel):
    error = await failure(slow_channel, AT_LEAST_TWO, 1.8 * await step_s(slow_channel))
    assert error.reason_name == "BUDGET_TOO_SMALL"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"labels": ()}, "labels"),
        ({"labels": (10,)}, "labels"),
        ({"labels": (1, 2), "count": 3}, "labels"),
        ({"labels": range(129)}, "labels"),
        ({"count": 0}, "count"),
        ({"count": 129}, "count"),
        ({"guidance": 1.5}, "guidance"),
        ({"guidance": float("nan")}, "guidance"),
        ({"format": 99}, "format"),
        ({"encoding_quality": 0}, "encoding_quality"),
        ({"encoding_quality": 101}, "encoding_quality"),
        ({"service_level": common_pb2.ServiceLevel(priority=9)}, "service_level.priority"),
        (
            {"service_level": common_pb2.ServiceLevel(at_least=common_pb2.QualityFloor(psnr_db=30))},
            "service_level.at_least",
        ),
    ],
)
async def test_bad_input_names_its_field_and_harms_nobody(channel, fields, field):
    error, (_, images, _) = await asyncio.gather(
        failure(channel, ask(**({"labels": (1,)} | fields))), generate(channel, ask([2], count=3))
    )
    assert error.status is grpc.StatusCode.INVALID_ARGUMENT
    assert list(error.violations) == [field]
    assert len(images) == 3


async def test_several_bad_fields_are_told_together(channel):
    error = await failure(channel, ask((11,), count=500, format=77))
    assert set(error.violations) == {"labels", "count", "format"}


async def test_unknown_names_and_rungs_have_errors_of_their_own(channel):
    assert (await failure(channel, ask(model="../../etc/passwd"))).reason_name == "NOT_FOUND"
    for level in (
        common_pb2.ServiceLevel(exact="3"),
        common_pb2.ServiceLevel(at_least=common_pb2.QualityFloor(nfe=5)),
    ):
        assert (await failure(channel, ask(service_level=level))).reason_name == "NO_SUCH_RUNG"


@pytest.mark.parametrize(
    ("form", "channels"), [("PNG", 1), ("JPEG", 1), ("WEBP", 3), ("RAW", 1), ("FLOAT32", 1), ("UNSPECIFIED", 1)]
)
async def test_every_format_comes_as_it_says(channel, form, channels):
    _, images, _ = await generate(channel, ask([5], count=128, format=f"PIXEL_FORMAT_{form}"))
    assert len(images) == 128
    for image in images:
        assert (image.width, image.height, image.channels) == (8, 8, channels)
        if form in ("RAW", "FLOAT32"):
            assert len(image.data) == 64 * (4 if form == "FLOAT32" else 1)
        else:
            with Image.open(io.BytesIO(image.data)) as opened:
                assert opened.format == ("PNG" if form == "UNSPECIFIED" else form)
                assert len(opened.getbands()) == channels


async def test_previews_come_after_each_step_and_change_nothing(channel):
    exact = common_pb2.ServiceLevel(exact="4")
    fields = {"count": 40, "seed": 9, "service_level": exact, "format": common_pb2.PIXEL_FORMAT_PNG}
    _, plain, _ = await generate(channel, ask([3], **fields))
    _, images, summary = await generate(channel, ask([3], previews=True, **fields))
    assert [(image.nfe, image.preview) for image in images] == [(1 + at // 40, at < 120) for at in range(160)]
    assert [image.data for image in images[120:]] == [image.data for image in plain]
    assert [image.index for image in images[:40]] == list(range(40))
    final = [np.array(Image.open(io.BytesIO(image.data)), dtype=float) for image in images[120:]]
    far = [
        np.mean([np.abs(np.array(Image.open(io.BytesIO(image.data))) - final[image.index]).mean() for image in part])
        for part in (images[:40], images[40:80], images[80:120])
    ]
    assert far[0] > far[1] > far[2]  # each preview is nearer to the end
    assert summary.served.steps_executed == 4


async def test_a_request_may_be_larger_than_a_step(calibrations):
    async with worker(cache_dir=calibrations, max_batch=16) as connected:
        exact = common_pb2.ServiceLevel(exact="2")
        form = common_pb2.PIXEL_FORMAT_FLOAT32
        large = ask([2], count=40, seed=4, format=form, service_level=exact)
        small = ask([2], count=5, seed=4, format=form, service_level=exact)
        (_, many, _), (_, few, _) = await asyncio.gather(generate(connected, large), generate(connected, small))
        assert len(many) == 40
        for one, other in zip(many, few, strict=False):  # the seed and the place alone make the noise
            np.testing.assert_allclose(floats(one), floats(other), rtol=0, atol=1e-5)


async def test_threads_are_measured_unless_they_are_said(calibrations):
    async with worker(cache_dir=calibrations, threads=None) as connected:
        described = await worker_pb2_grpc.WorkerStub(connected).Describe(
            worker_pb2.DescribeRequest(), timeout=TIMEOUT_S
        )
        assert 1 <= described.threads <= usable_cores()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
async def test_a_device_that_is_not_there_stops_the_start(calibrations):
    with pytest.raises(StartError, match=r"^device: "):
        async with worker(cache_dir=calibrations, device="cuda"):
            pass


async def test_half_precision_says_so_and_stays_near(calibrations):
    request = ask([5], count=8, seed=2, format=common_pb2.PIXEL_FORMAT_FLOAT32)
    async with worker(cache_dir=calibrations, precision="bfloat16") as connected:
        described = await worker_pb2_grpc.WorkerStub(connected).Describe(
            worker_pb2.DescribeRequest(), timeout=TIMEOUT_S
        )
        assert described.precision == "bfloat16"
        _, rounded, _ = await generate(connected, request)
    async with worker(cache_dir=calibrations) as connected:
        _, exact, _ = await generate(connected, request)
    apart = [np.abs(floats(one) - floats(other)).mean() for one, other in zip(rounded, exact, strict=True)]
    assert 0 < np.mean(apart) < 0.1


async def test_a_cancelled_call_leaves_nothing_behind(channel):
    await plan_of(channel, ask([1], count=128), TIMEOUT_S)
    call = worker_pb2_grpc.WorkerStub(channel).Watch(worker_pb2.WatchWorkerRequest(), timeout=TIMEOUT_S)
    async for report in call:
        if report.in_flight == 0:
            break
    call.cancel()
    assert list(report.loads) == []


async def test_a_draining_worker_takes_nothing_new(channel):
    worker_stub = worker_pb2_grpc.WorkerStub(channel)
    await worker_stub.Drain(worker_pb2.DrainRequest(), timeout=TIMEOUT_S)
    assert (await failure(channel, ask())).reason_name == "DRAINING"
    assert (await state(channel)).draining


async def test_the_worker_says_what_it_is(channel):
    described = await worker_pb2_grpc.WorkerStub(channel).Describe(worker_pb2.DescribeRequest(), timeout=TIMEOUT_S)
    assert described.kind == common_pb2.KIND_IMAGE
    assert (described.engine, described.device, described.precision) == ("torch-cpu", "cpu", "float32")
    assert described.policy == "headway"
    listed = await image_pb2_grpc.ImageGenerationStub(channel).ListModels(
        image_pb2.ListImageModelsRequest(), timeout=TIMEOUT_S
    )
    model = listed.models[0]
    card = json.loads((MODEL / "card.json").read_text())
    assert (model.name, model.classes, model.width) == ("dit-digits", 10, 8)
    assert model.hash == described.assets[0].hash
    assert [(rung.nfe, rung.quality, rung.dfd) for rung in model.ladder.rungs] == [
        (rung["steps"], rung["quality"], rung["dfd"]) for rung in card["rungs"]
    ]
    sizes = [cost.batch for cost in (await state(channel)).step_costs]
    assert sizes[0] == 1 and sizes[-1] >= 128  # a request of 128 images is one step, in as many passes as pay


async def test_a_worker_that_is_run_to_be_compared_says_so(calibrations):
    async with worker(cache_dir=calibrations, policy="fixed:2") as channel:
        described = await worker_pb2_grpc.WorkerStub(channel).Describe(worker_pb2.DescribeRequest(), timeout=TIMEOUT_S)
        assert described.policy == "fixed:2"
        plan, _, summary = await generate(channel, ask())
    assert (plan.rung.label, plan.reason) == ("2", common_pb2.RUNG_REASON_POLICY)
    assert (summary.served.rung.label, summary.served.steps_executed) == ("2", 2)


async def test_a_policy_over_a_rung_that_is_not_there_stops_the_start(calibrations):
    with pytest.raises(StartError, match="policy: no rung '3'"):
        async with worker(cache_dir=calibrations, policy="fixed:3"):
            pass


@pytest.mark.parametrize("broken", ["missing", "weights", "card"])
async def test_a_model_that_is_not_whole_stops_the_start(broken, calibrations, tmp_path):
    folder = tmp_path / "model"
    if broken != "missing":
        shutil.copytree(MODEL, folder)
    if broken == "weights":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    if broken == "card":
        (folder / "card.json").write_text("{")
    with pytest.raises(StartError, match=r"^model "):
        async with worker(cache_dir=calibrations, model=folder):
            pass
