import asyncio
import os
import signal

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_rig import serving
from sum_engine import SteppedClock

from headway.load_report import AVERAGED_S, MOST_STREAMS, LoadMeter, Occupancy, Rate, interval_s, occupancy_of
from headway.telemetry import Outcome
from headway.v1 import orca_service_pb2, orca_service_pb2_grpc, router_pb2, worker_pb2


async def answer(request: object, context: object) -> router_pb2.ListWorkersResponse:
    return router_pb2.ListWorkersResponse()


@settings(deadline=None, max_examples=30)
@given(st.floats(0.1, 100), st.floats(0.01, 1.0), st.integers(200, 400))
def test_a_steady_pace_is_the_rate_from_its_beginning(amount: float, every_s: float, times: int) -> None:
    rate, now_s = Rate(0.0), 0.0
    for _ in range(times):
        now_s += every_s
        rate.add(amount, now_s)
    assert rate.per_s(now_s) == pytest.approx(amount / every_s, rel=0.6 if every_s * times < 3 else 0.15)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.01, 1000), min_size=1, max_size=20))
def test_what_is_used_evenly_is_the_same_however_seldom_one_looks(gaps_s: list[float]) -> None:
    rate, now_s = Rate(0.0), 0.0
    for gap_s in gaps_s:
        now_s += gap_s
        rate.spread(0.25 * gap_s, now_s)
    assert rate.per_s(now_s) <= 0.25 * 1.001
    if now_s >= 1.0:
        assert rate.per_s(now_s) == pytest.approx(0.25)


def test_a_rate_fades_and_a_clock_that_stands_still_does_no_harm() -> None:
    rate = Rate(0.0)
    rate.add(100.0, 50.0)
    before = rate.per_s(50.0)
    rate.spread(1.0, 50.0)
    assert rate.per_s(50.0) == before
    assert rate.per_s(50.0 + AVERAGED_S) == pytest.approx(before / 2.718, rel=0.02)


def test_a_report_counts_answers_errors_device_time_and_backlog() -> None:
    clock, cpu = SteppedClock(), SteppedClock()
    meter = LoadMeter(clock, cpu_s=cpu)
    meter.occupancy = lambda: Occupancy(backlog_s=5.0, named={"one": 1.0}, shares={"two": 0.5})
    for _ in range(1000):
        clock.now_s += 0.1
        cpu.now_s += 0.01
        for outcome in (Outcome.OK, Outcome.OK, Outcome.SHED, Outcome.CANCELLED, Outcome.BAD_INPUT):
            meter.began()
            meter.ended(outcome)
        meter.worked(0.03)
    meter.began()
    report = meter.report()
    assert report.rps_fractional == pytest.approx(20, rel=0.05)
    assert report.eps == pytest.approx(10, rel=0.05)
    assert report.application_utilization == pytest.approx(0.3 + 5.0 / AVERAGED_S, rel=0.05)
    assert 0 < report.cpu_utilization <= 0.1 + 1e-6
    assert report.named_metrics["headway.calls_in_flight"] == 1
    assert (report.named_metrics["one"], report.utilization["two"]) == (1.0, 0.5)


def test_a_report_is_made_seldom_however_often_it_is_asked_for() -> None:
    clock, made = SteppedClock(), []
    meter = LoadMeter(clock)
    meter.occupancy = lambda: made.append(clock.now_s) or Occupancy(0.0)
    for _ in range(100):
        clock.now_s += 0.01
        meter.trailer()
    assert len(made) <= 11


def test_a_refusal_carries_what_is_known_without_asking_the_engine() -> None:
    clock, asked = SteppedClock(), []
    meter = LoadMeter(clock)
    meter.occupancy = lambda: asked.append(clock.now_s) or Occupancy(0.0)
    for _ in range(5):
        clock.now_s += 60.0
        meter.trailer(refused=True)
    assert len(asked) == 1  # there was none yet
    meter.trailer()
    assert len(asked) == 2


def test_a_workers_figures_are_those_that_it_tells_routers() -> None:
    image = occupancy_of(worker_pb2.WorkerState(backlog_ms=250.0, in_flight=3))
    assert (image.backlog_s, image.shares) == (0.25, {})
    assert image.named == {"headway.backlog_ms": 250.0, "headway.queue_depth": 3.0}
    text = occupancy_of(worker_pb2.WorkerState(free_kv_blocks=25, total_kv_blocks=100, queued_prefill_tokens=7))
    assert text.shares == {"kv_cache": 0.75}
    assert text.named["headway.free_kv_share"] == 0.25
    assert text.named["headway.queued_prefill_tokens"] == 7


@pytest.mark.parametrize(
    ("seconds", "nanos", "expected"),
    [(0, 0, 1.0), (0, 5, 1.0), (-5, 0, 1.0), (2, 500_000_000, 2.5), (10**12, 0, 3600.0)],
)
def test_the_interval_is_what_was_asked_for_within_limits(seconds: int, nanos: int, expected: float) -> None:
    request = orca_service_pb2.OrcaLoadReportRequest()
    request.report_interval.seconds, request.report_interval.nanos = seconds, nanos
    assert interval_s(request) == expected


async def test_reports_come_at_once_and_again_and_end_when_the_server_does() -> None:
    async with serving(answer) as address, grpc.aio.insecure_channel(address) as channel:
        stub = orca_service_pb2_grpc.OpenRcaServiceStub(channel)
        call = stub.StreamCoreMetrics(orca_service_pb2.OrcaLoadReportRequest())
        for report in (await call.read(), await call.read()):
            assert 0 <= report.cpu_utilization <= 1
            assert report.named_metrics["headway.calls_in_flight"] == 0  # of our own services, that is
        long = stub.StreamCoreMetrics(_every(3600))
        await long.read()
        os.kill(os.getpid(), signal.SIGTERM)
        assert await long.read() is grpc.aio.EOF
        assert await long.code() is grpc.StatusCode.OK


async def test_only_so_many_streams_of_reports_are_served_at_once() -> None:
    async with serving(answer) as address, grpc.aio.insecure_channel(address) as channel:
        stub = orca_service_pb2_grpc.OpenRcaServiceStub(channel)
        calls = [stub.StreamCoreMetrics(_every(3600)) for _ in range(MOST_STREAMS)]
        for call in calls:
            await call.read()
        assert await _refused(stub)
        calls.pop().cancel()
        async with asyncio.timeout(10):
            while await _refused(stub):
                pass  # the place of one that leaves is free again


async def _refused(stub: orca_service_pb2_grpc.OpenRcaServiceStub) -> bool:
    call = stub.StreamCoreMetrics(_every(3600))
    try:
        await call.read()
    except grpc.aio.AioRpcError:
        return await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return False


def _every(seconds: int) -> orca_service_pb2.OrcaLoadReportRequest:
    request = orca_service_pb2.OrcaLoadReportRequest()
    request.report_interval.seconds = seconds
    return request
