"""How many workers are wanted, and that KEDA is told."""

from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.errors import HeadwayError, NoWorker, Shed, TooManyCalls
from headway.requests import images_request
from headway.telemetry import Metrics, Outcome
from headway.upstream import UpstreamCredentials
from headway.v1 import common_pb2, keda_pb2, keda_pb2_grpc
from services.router.config import WorkerAddress
from services.router.identity import Identity
from services.router.pool import Pool, Upstream
from services.router.scaling import MOST_BUSY, SLIGHT, TARGET_BACKLOG_MS, Demand, ScaleSignal, desired_replicas

IMAGE = common_pb2.KIND_IMAGE


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    workers = draw(st.integers(0, 200))
    asked = draw(st.floats(0, 1000))
    backlog_ms, busy = draw(st.floats(0, 1e6)), draw(st.floats(0, 1)) * workers
    return Demand(workers, backlog_ms, busy, asked, asked * draw(st.floats(0, 1)))


@settings(max_examples=200, deadline=None)
@given(demands(), st.floats(0, 1e6), st.floats(0, 1))
def test_more_to_do_never_wants_fewer(demand: Demand, more_ms: float, more_unkept: float) -> None:
    wanted = desired_replicas(demand)
    longer = Demand(demand.workers, demand.backlog_ms + more_ms, demand.busy, demand.asked, demand.unkept)
    unkept = demand.unkept + more_unkept * (demand.asked - demand.unkept)
    worse = Demand(demand.workers, demand.backlog_ms, demand.busy, demand.asked, unkept)
    assert desired_replicas(longer) >= wanted
    assert desired_replicas(worse) >= wanted


@settings(max_examples=200, deadline=None)
@given(demands())
def test_it_at_most_doubles_and_keeps_those_that_are_busy(demand: Demand) -> None:
    wanted = desired_replicas(demand)
    assert 0 <= wanted <= max(2, 2 * demand.workers)
    if demand.asked >= SLIGHT or demand.backlog_ms >= 1 or demand.busy >= SLIGHT:
        assert wanted >= max(1, min(demand.workers, demand.busy / MOST_BUSY) - 1e-9)
    else:
        assert wanted == 0


@pytest.mark.parametrize(
    ("demand", "wanted"),
    [
        (Demand(4), 0),
        (Demand(4, busy=0.1, backlog_ms=5, asked=1), 1),
        (Demand(4, busy=2.0, backlog_ms=900, asked=9), 3),  # 2 of 3 are busy
        (Demand(4, busy=4.0, backlog_ms=3 * TARGET_BACKLOG_MS, asked=9), 4),
        (Demand(4, busy=4.0, backlog_ms=5.5 * TARGET_BACKLOG_MS, asked=9), 6),
        (Demand(4, busy=4.0, backlog_ms=100 * TARGET_BACKLOG_MS, asked=9), 8),
        (Demand(4, busy=4.0, backlog_ms=900, asked=10, unkept=3), 6),
        (Demand(4, busy=4.0, backlog_ms=900, asked=1000, unkept=3), 4),  # within what may be missed
        (Demand(0, asked=5, unkept=5), 2),
    ],
)
def test_what_is_wanted(demand: Demand, wanted: int) -> None:
    assert desired_replicas(demand) == wanted


@pytest.mark.parametrize(
    ("error", "wanted"), [(Shed("full"), 2), (NoWorker("none"), 2), (TooManyCalls("over its quota"), 0)]
)
async def test_what_load_refused_counts_and_what_a_quota_refused_does_not(error: HeadwayError, wanted: int) -> None:
    metrics = Metrics("router", "0")
    credentials = UpstreamCredentials()
    upstream = Upstream(credentials, Identity(credentials, None), 1 << 20, 1.0, 0.0)
    pool = Pool([WorkerAddress(IMAGE, "127.0.0.1:1")], upstream, metrics, lambda: 0.0)
    signal = ScaleSignal(pool, metrics, {IMAGE})
    signal.look()
    changed = signal.changed
    for number in range(10):
        metrics.record_end("image", Outcome.SHED, 0.001, error, tenant=f"tenant-{number % 2}")
    signal.look()
    assert signal.desired == {IMAGE: wanted}
    assert changed.is_set() == (wanted > 0)
    assert metrics.registry.get_sample_value("headway_desired_replicas", {"kind": "image"}) == wanted
    for _ in range(100):
        signal.look()
    assert signal.desired == {IMAGE: 0}


async def test_keda_is_told_what_is_wanted(mesh: Any) -> None:
    worker = await mesh.worker(closed=True)
    client = await mesh.router(worker)
    stub = keda_pb2_grpc.ExternalScalerStub(client.channel)
    scaled = keda_pb2.ScaledObjectRef(name="images", namespace="default", scalerMetadata={"kind": "dit"})
    active = stub.StreamIsActive(scaled)
    assert not (await active.read()).result
    call = client.images.Generate(images_request(3), timeout=30)
    assert (await call.read()).HasField("plan")
    assert (await active.read()).result
    assert (await stub.IsActive(scaled, timeout=10)).result
    (spec,) = (await stub.GetMetricSpec(scaled, timeout=10)).metricSpecs
    assert (spec.metricName, spec.targetSize, spec.targetSizeFloat) == ("headway_desired_replicas", 1, 1.0)
    asked = keda_pb2.GetMetricsRequest(scaledObjectRef=scaled, metricName=spec.metricName)
    (value,) = (await stub.GetMetrics(asked, timeout=10)).metricValues
    assert (value.metricName, value.metricValue, value.metricValueFloat) == ("headway_desired_replicas", 1, 1.0)
    active.cancel()
    call.cancel()


@pytest.mark.parametrize("metadata", [{}, {"kind": ""}, {"kind": "video"}, {"kind": "text"}])
async def test_kinds_that_the_router_has_not_are_refused(mesh: Any, metadata: dict[str, str]) -> None:
    client = await mesh.router("image=127.0.0.1:1", healthy=0)
    stub = keda_pb2_grpc.ExternalScalerStub(client.channel)
    scaled = keda_pb2.ScaledObjectRef(scalerMetadata=metadata)
    for call in (stub.IsActive(scaled), stub.GetMetricSpec(scaled), stub.StreamIsActive(scaled).read()):
        with pytest.raises(grpc.aio.AioRpcError, match="kind must be one of image, dit") as refusal:
            await call
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
