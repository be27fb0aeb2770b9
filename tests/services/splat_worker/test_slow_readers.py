"""A reader who reads nothing: flow control stops the work behind, through the router too, and nothing is lost."""

import asyncio
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import pytest
from splat_rig import TIMEOUT_S, worker
from test_path_service import ask, frames_of, key, rest_of, router, started

from headway.v1 import worker_pb2, worker_pb2_grpc

FRAMES = 32
REST_S = 1.0
LONG_S = 60.0


async def rests(channel: grpc.aio.Channel) -> None:
    """Waits until the worker has had nothing to do for a while."""
    watch = worker_pb2_grpc.WorkerStub(channel).Watch(worker_pb2.WatchWorkerRequest(), timeout=LONG_S)
    since_s = monotonic()
    async for report in watch:
        if report.in_flight:
            since_s = monotonic()
        elif monotonic() - since_s > REST_S:
            break
    else:
        pytest.fail("the worker's reports ended")
    watch.cancel()


def pauses_s(frames: list[Any]) -> list[float]:
    """What passed between one frame and the next, by what each had left of the one deadline that they share."""
    left_ms = [frame.served.slack_ms for frame in frames]
    return [(before - after) / 1000 for before, after in pairwise(left_ms)]


@pytest.mark.parametrize("through_router", [False, True])
async def test_who_does_not_read_stops_the_work_and_gets_all_of_it_later(
    calibrations: Path, tmp_path: Path, through_router: bool
) -> None:
    """Frames of 0.8 MB each, 25 MB in all: many times what connections hold on their way."""
    address = f"unix:{tmp_path}/worker"
    async with worker(cache_dir=calibrations, listen=address) as channel, router(address) as routed:
        request = ask(key(-1), key(1), width=512, height=512, frames_between=FRAMES - 2)
        call = started(routed if through_router else channel, request)
        assert (await call.read()).HasField("plan")
        await asyncio.wait_for(rests(channel), TIMEOUT_S)
        frames = frames_of(await rest_of(call))
    assert [frame.index for frame in frames] == list(range(FRAMES))
    assert all(frame.HasField("frame") for frame in frames)
    assert max(pauses_s(frames)) >= REST_S  # work that goes on unread has none
