"""Several clients at once stream a camera path at a frame rate: what of it comes, how good, and which are refused."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from rich.console import Console

from benchmarks.experiment.worker import running, split_cores
from headway.client import AsyncHeadway
from headway.errors import HeadwayError
from headway.requests import path_request
from headway.v1 import splat_pb2
from services.splat_worker.views import Pose

console = Console(width=120)
RATE, KEYS, BETWEEN, KEY_S = 15.0, 5, 14, 1.0
START_DELAY_S = 1.0
Walker = Callable[[Pose, int, float], splat_pb2.Camera]


@dataclass(frozen=True, slots=True)
class Watched:
    """What came of one client's path."""

    refused: str | None
    frames: int
    rendered: int
    by_show_time: int
    """Frames that were there when they were to be shown, on the client's clock."""
    quality: float | None
    """Mean normalised quality of the frames that were rendered."""
    first_frame_ms: float | None


async def measure(command: Sequence[str], scene: str, home: Pose, walker: Walker, quick: bool) -> list[dict[str, Any]]:
    """A row for each number of clients that begin at the same time."""
    rows = []
    async with running(command, split_cores()) as worker, AsyncHeadway(worker.address) as client:
        for clients in (1, 3) if quick else (1, 2, 4, 8, 16):
            found = await asyncio.gather(*(_watch(client, scene, home, walker, number) for number in range(clients)))
            rows.append(_row(clients, found))
            console.print({name: value for name, value in rows[-1].items() if name != "paths"})
    return rows


async def _watch(client: AsyncHeadway, scene: str, home: Pose, walker: Walker, number: int) -> Watched:
    cameras = [walker(home, number, KEY_S * key) for key in range(KEYS)]
    request = path_request(scene, cameras, frames_between=BETWEEN, frames_per_second=RATE, format="jpeg")
    request.start_delay.FromMilliseconds(round(START_DELAY_S * 1000))
    frames = (KEYS - 1) * (BETWEEN + 1) + 1
    start_s, came = time.perf_counter(), list[tuple[int, float, float]]()
    try:
        async for message in client.path(request, deadline_s=START_DELAY_S + frames / RATE + 1.0):
            if message.WhichOneof("part") == "frame" and message.frame.HasField("frame"):
                came.append((message.frame.index, time.perf_counter() - start_s, message.frame.served.quality))
    except HeadwayError as error:
        return Watched(error.reason_name, frames, len(came), 0, None, None)
    shown = sum(1 for index, at_s, _ in came if at_s <= START_DELAY_S + index / RATE)
    quality = fmean(quality for _, _, quality in came) if came else None
    return Watched(None, frames, len(came), shown, quality, came[0][1] * 1000 if came else None)


def _row(clients: int, found: Sequence[Watched]) -> dict[str, Any]:
    admitted = [each for each in found if each.refused is None]
    asked = sum(each.frames for each in admitted)
    return {
        "clients": clients,
        "admitted": len(admitted),
        "rendered_share": sum(each.rendered for each in admitted) / asked if asked else None,
        "by_show_time_share": sum(each.by_show_time for each in admitted) / asked if asked else None,
        "quality": fmean(each.quality or 0.0 for each in admitted) if admitted else None,
        "paths": [asdict(each) for each in found],
    }
