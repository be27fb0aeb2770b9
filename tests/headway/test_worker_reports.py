"""When a worker tells those who watch it how things stand."""

import asyncio
import threading
import time
from contextlib import AsyncExitStack

from sum_engine import Alone, Quiet, Sum, SumEngine, SumScheduler, make

from headway.engine import Batch
from headway.engine_loop import EngineLoop
from headway.worker import snapshots

INTERVAL_S = 0.05


class Paced(SumEngine):
    """Runs a step when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.gate.set()
        self.steps = threading.Semaphore(0)

    def run(self, batch: Batch[Sum]) -> list[int]:
        assert self.steps.acquire(timeout=60)
        return super().run(batch)


async def test_work_that_only_went_on_is_told_an_interval_later_than_news() -> None:
    engine, slept = Paced(), list[float]()
    loop = EngineLoop(
        SumScheduler(1.0), engine, clock=time.monotonic, device=Alone(), observer=Quiet(), name="sum"
    )  # fmt: skip
    loop.start()
    async with AsyncExitStack() as works:

        async def a_step_ends() -> None:
            changed = loop.changes()
            engine.steps.release()
            await changed.wait()

        async def another_comes() -> None:
            await works.enter_async_context(loop.submit(make(budget_s=60)))

        async def nothing_happens() -> None: ...

        coming = iter([a_step_ends, nothing_happens, another_comes, a_step_ends, another_comes])

        async def sleep(seconds: float) -> None:
            slept.append(seconds)
            await next(coming)()

        await another_comes()
        told = snapshots(loop, INTERVAL_S, sleep)
        intervals, in_flight = list[int](), [(await anext(told)).in_flight]
        for _ in range(3):
            slept.clear()
            in_flight.append((await anext(told)).in_flight)
            intervals.append(len(slept))
        assert intervals == [2, 1, 2]
        assert in_flight == [1, 1, 2, 3]
        assert set(slept) == {INTERVAL_S}
        engine.steps.release(100)
    await asyncio.wait_for(loop.stop(), 60)
