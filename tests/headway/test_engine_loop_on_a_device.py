"""Engine loops that share a device: what each knows of the others, and that none is in the way of another."""

import asyncio
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from sum_engine import Alone, Quiet, SteppedClock, Sum, SumEngine, SumScheduler, make, outcome

from headway.cost import Cost
from headway.deadline import Budget
from headway.device import DeviceArbiter, DeviceClient, Lease
from headway.engine import Batch, Pulse
from headway.engine_loop import EngineLoop
from headway.errors import Expired, Shed
from headway.ticket import Finished


class Contended(Alone):
    """A device that is granted when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.asked = threading.Event(), asyncio.Event()
        self.hurried: list[float] = []
        self._loop = asyncio.get_running_loop()

    @contextmanager
    def lease(self, *, due_s: float, label: str, keep: bool = False) -> Iterator[Lease]:
        self._loop.call_soon_threadsafe(self.asked.set)
        assert self.free.wait(60)
        yield Lease(wait_s=0.0, granted=True)

    def hurry(self, due_s: float) -> None:
        self.hurried.append(due_s)


@asynccontextmanager
async def stepped(
    device: Alone, *, max_batch: int = 8, commits: bool = False, clock: SteppedClock | None = None
) -> AsyncIterator[tuple[EngineLoop[Sum], SumEngine]]:
    """Steps of 10 ms on a clock that stands still."""
    engine = SumEngine()
    scheduler = SumScheduler(10.0, max_batch, commits=commits)
    loop = EngineLoop(scheduler, engine, clock=clock or SteppedClock(), device=device, observer=Quiet(), name="sum")
    loop.start()
    yield loop, engine
    engine.gate.set()
    await loop.stop()


def due_in(budget_s: float) -> Sum:
    work = make()
    work.ticket.budget = Budget(0.0, budget_s, 0.0)
    work.ticket.target_s = budget_s
    return work


async def test_the_step_of_another_worker_on_the_device_is_waited_for() -> None:
    device = Alone()
    async with stepped(device) as (loop, _):
        device.others_step_ends_s = 0.1
        assert loop.snapshot().setting.busy_ms == pytest.approx(100.0)
        with pytest.raises(Shed):
            async with loop.submit(due_in(0.105)):
                pass
        async with loop.submit(due_in(0.115)) as ticket:
            assert ticket.plan is not None
            assert ticket.plan.predicted_p50_ms == pytest.approx(110.0)


async def test_a_step_here_and_the_one_of_another_worker_are_never_both_waited_for() -> None:
    device = Alone()
    async with stepped(device, max_batch=1) as (loop, engine), loop.submit(due_in(1.0)) as first:
        assert await asyncio.to_thread(engine.begun.wait, 60)
        assert (device.step_end_s, device.demand) == (0.01, [(1.0, pytest.approx(10.0))]), "what is left beside it"
        device.others_step_ends_s = 0.008  # it was told before this worker's step began
        async with loop.submit(due_in(0.022)) as urgent:
            assert device.demand == [(0.022, pytest.approx(10.0)), (1.0, pytest.approx(10.0))]
            engine.gate.set()
            await asyncio.gather(outcome(first), outcome(urgent))


async def test_what_runs_is_decided_when_the_device_is_granted() -> None:
    """The urgent one comes while the patient one waits for the device: it goes first, and the device is told."""
    device = Contended()
    async with stepped(device, max_batch=1) as (loop, engine), loop.submit(due_in(9.0)) as patient:
        await device.asked.wait()
        async with loop.submit(due_in(1.0)) as urgent:
            assert device.hurried[-1] == 1.0
            engine.gate.set()
            device.free.set()
            await asyncio.gather(outcome(patient), outcome(urgent))
        assert engine.batches[0] == [urgent.key]


async def test_a_stop_does_not_wait_for_a_busy_device(tmp_path: Path) -> None:
    """A worker at rest waits for its pulse behind all real work; told to stop, it has the device next."""
    async with DeviceArbiter(tmp_path / "s") as arbiter:
        worker, holder, patient = [await asyncio.to_thread(DeviceClient, tmp_path / "s") for _ in range(3)]
        pulse = Pulse(Cost(10.0), lambda: None)
        loop = EngineLoop(
            SumScheduler(10.0), SumEngine(), clock=time.monotonic, device=worker, observer=Quiet(), name="sum",
            pulse=pulse,
        )  # fmt: skip
        stopped, release = threading.Event(), threading.Event()

        def hold() -> None:
            with holder.lease(due_s=0.0):
                assert release.wait(60)

        def wait_behind() -> bool:
            with patient.lease(due_s=time.monotonic() + 30):  # before the pulse
                return stopped.wait(60)

        async def until(waiting: int) -> None:
            while arbiter._queue.holder is None or arbiter._queue.waiting != waiting:  # noqa: ASYNC110  it sets no event
                await asyncio.sleep(0.005)

        def hurried() -> bool:
            queue = arbiter._queue
            return any(each.due_s <= time.monotonic() for each in queue._claims.values() if each is not queue.holder)

        holding = asyncio.create_task(asyncio.to_thread(hold))
        await until(0)
        loop.start()
        await until(1)
        waiting = asyncio.create_task(asyncio.to_thread(wait_behind))
        await until(2)
        stopping = asyncio.create_task(loop.stop())
        while not hurried():  # noqa: ASYNC110  it sets no event
            await asyncio.sleep(0.005)
        release.set()
        await stopping
        stopped.set()
        assert await waiting
        await holding
        for client in (worker, holder, patient):
            await asyncio.to_thread(client.close)


async def test_no_step_is_spent_on_who_cannot_be_in_time_any_more() -> None:
    """It was in time when it was admitted; then others had the device."""
    device, clock = Contended(), SteppedClock()
    async with (
        stepped(device, max_batch=1, commits=True, clock=clock) as (loop, engine),
        loop.submit(due_in(0.5)) as late,
        loop.submit(due_in(9.0)) as patient,
    ):
        await device.asked.wait()
        clock.now_s = 0.495  # a step takes 10 ms, and two are left at the lowest rung
        engine.gate.set()
        device.free.set()
        left = await outcome(late)
        assert isinstance(left, Expired)
        assert "cannot be met" in left.message
        await outcome(patient)
        assert {key for batch in engine.batches for key in batch} == {patient.key}


class Exclusive(SumEngine):
    """Notes when another engine runs a step at the same time."""

    running: ClassVar[set[int]] = set()
    most: ClassVar[int] = 0

    def run(self, batch: Batch[Sum]) -> list[int]:
        self.running.add(id(self))
        Exclusive.most = max(Exclusive.most, len(self.running))
        os.sched_yield()
        try:
            return super().run(batch)
        finally:
            self.running.discard(id(self))


async def test_three_loops_on_one_device_serve_all_that_they_admit_one_step_at_a_time(tmp_path: Path) -> None:
    """Urgent and patient work comes to all of them at once, is waited for, hurried and left, over a real arbiter."""
    Exclusive.most, draw = 0, random.Random(5)
    async with DeviceArbiter(tmp_path / "s"):
        clients = [await asyncio.to_thread(DeviceClient, tmp_path / "s", patience_s=20.0) for _ in range(3)]
        loops = []
        for number, client in enumerate(clients):
            engine = Exclusive()
            engine.gate.set()
            loop = EngineLoop(
                SumScheduler(0.01, 2), engine, clock=time.monotonic, device=client, observer=Quiet(), name=str(number)
            )
            loop.start()
            loops.append((loop, engine))

        async def one(loop: EngineLoop[Sum], budget_s: float, stays: bool) -> bool:
            async with loop.submit(make(budget_s=budget_s)) as ticket:
                return stays and isinstance(await outcome(ticket), Finished)

        asked = [(draw.choice(loops)[0], draw.uniform(20, 80), draw.random() < 0.8) for _ in range(150)]
        served = await asyncio.gather(*(one(*each) for each in asked))
        assert served == [stays for _, _, stays in asked]
        for loop, _ in loops:
            await loop.stop()
        for client in clients:
            await asyncio.to_thread(client.close)
        assert Exclusive.most == 1
        assert [client.unleased for client in clients] == [0, 0, 0]
        assert sum(len(engine.released) for _, engine in loops) == len(asked)
