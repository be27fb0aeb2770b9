"""Sends requests from this process: open loop, as they arrive, or closed loop, as fast as they are answered."""

import asyncio
import gc
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager

from benchmarks.experiment.arrivals import Arrival
from benchmarks.experiment.records import Record
from headway.client import AsyncHeadway
from headway.errors import HeadwayError
from headway.requests import service_level
from headway.v1 import common_pb2

Answer = common_pb2.Plan | common_pb2.Served
Send = Callable[[AsyncHeadway, Arrival, common_pb2.ServiceLevel], AsyncIterator[Answer]]
"""Sends one request of a kind; yields its plan as soon as it comes, and what was served at the end.

The deadline to set on the call is the arrival's. Raises the HeadwayError that ended the call.
"""

LEAD_S = 0.3
GENEROUS_MS = 25_000.0
PAUSE_S = 0.2


async def open_loop(send: Send, client: AsyncHeadway, arrivals: Sequence[Arrival]) -> list[Record]:
    """Sends every arrival at its time, whatever became of those before it; returns when all have ended."""
    start_s, tasks = time.perf_counter() + LEAD_S, list[asyncio.Task[Record]]()
    with _no_collection():
        for arrival in arrivals:
            wait_s = start_s + arrival.at_s - time.perf_counter()
            await asyncio.sleep(max(0.0, wait_s))
            late_ms = (time.perf_counter() - start_s - arrival.at_s) * 1000
            level = service_level(priority=arrival.priority, target_s=arrival.target_ms / 1000)
            tasks.append(asyncio.create_task(ask(send, client, arrival, level, late_ms)))
        return list(await asyncio.gather(*tasks))


async def closed_loop(
    send: Send, client: AsyncHeadway, sizes: Sequence[int], rung: str, *, in_flight: int, seconds: float
) -> list[tuple[float, int]]:
    """Keeps so many requests for one rung in flight. Returns (seconds from the start, items) of every answer.

    A request that is refused is asked again after a pause. Raises RuntimeError when one is answered at another rung.
    """
    start_s, numbers, found = time.perf_counter(), itertools.count(), list[tuple[float, int]]()

    async def one_after_the_other() -> None:
        while time.perf_counter() - start_s < seconds:
            number = next(numbers)
            arrival = unhurried(number, sizes[number % len(sizes)])
            record = await ask(send, client, arrival, service_level(exact=rung))
            if not record.answered:
                await asyncio.sleep(PAUSE_S)
                continue
            if record.rung != rung:
                raise RuntimeError(f"a request for rung {rung} was answered at {record.rung}")
            found.append((time.perf_counter() - start_s, arrival.items))

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(one_after_the_other())
    return found


def unhurried(seed: int, items: int) -> Arrival:
    """A request with all the time that it could need."""
    return Arrival(seed, 0.0, items, GENEROUS_MS, GENEROUS_MS, "normal", seed)


async def ask(
    send: Send, client: AsyncHeadway, arrival: Arrival, level: common_pb2.ServiceLevel, late_ms: float = 0.0
) -> Record:
    """Sends one request now and waits for its end."""
    plan, served, error, start_s = None, None, None, time.perf_counter()
    try:
        async for answer in send(client, arrival, level):
            if isinstance(answer, common_pb2.Plan):
                plan = answer
            else:
                served = answer
    except HeadwayError as failure:
        error = failure.reason_name
    elapsed_ms = (time.perf_counter() - start_s) * 1000
    if served is None or plan is None:
        return Record(arrival, late_ms, elapsed_ms, error or "NO_ANSWER", admitted=plan is not None)
    return Record(
        arrival,
        late_ms,
        elapsed_ms,
        error,
        admitted=True,
        rung=served.rung.label,
        quality=served.quality,
        steps=served.steps_executed,
        slack_ms=served.slack_ms,
        predicted_p50_ms=plan.predicted_p50_ms,
        predicted_p99_ms=plan.predicted_p99_ms,
    )


@contextmanager
def _no_collection() -> Iterator[None]:
    """A pause of the garbage collector would be measured as the worker's."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
