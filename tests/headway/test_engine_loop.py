"""The engine loop over a real, tiny engine: one that adds up numbers, a step at a time."""

import asyncio
import itertools
import signal
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from sum_engine import LADDER, Alone, Quiet, SteppedClock, Sum, SumEngine, SumScheduler, make, outcome

from headway.cost import Cost
from headway.deadline import Budget
from headway.engine import Batch, Pulse
from headway.engine_loop import EngineLoop
from headway.errors import BudgetTooSmall, Draining, Expired, Failed, Shed
from headway.policy import policy_of
from headway.ticket import Finished, Ticket
from headway.v1 import common_pb2


class Rig:
    def __init__(self, step_ms: float = 1.0, max_batch: int = 8, others: tuple[tuple[float, float], ...] = ()) -> None:
        self.engine, self.device = SumEngine(), Alone(others)
        self.scheduler = SumScheduler(step_ms, max_batch)
        self.loop = EngineLoop(
            self.scheduler, self.engine, clock=time.monotonic, device=self.device, observer=Quiet(), name="sum"
        )


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    made.loop.start()
    yield made
    made.engine.gate.set()
    await made.loop.stop()


async def test_runs_every_step_of_the_top_rung_when_there_is_time(rig: Rig) -> None:
    rig.engine.gate.set()
    async with rig.loop.submit(make(number=3)) as ticket:
        finished = await outcome(ticket)
    assert finished.result == 12
    assert ticket.plan is not None
    assert (ticket.plan.rung.label, ticket.plan.steps) == ("4", 4)
    assert rig.engine.released == [ticket.key]


async def test_a_short_budget_buys_fewer_steps() -> None:
    rig = Rig(step_ms=100.0)
    rig.loop.start()
    rig.engine.gate.set()
    async with rig.loop.submit(make(budget_s=0.25)) as ticket:
        finished = await outcome(ticket)
    await rig.loop.stop()
    assert ticket.plan is not None
    assert ticket.plan.rung.label == "2"
    assert finished.result in (2, 4)  # steps turn out to be quick, so the planner may go up again


async def test_what_even_an_idle_worker_cannot_do_is_refused_with_the_least_budget() -> None:
    rig = Rig(step_ms=100.0)
    rig.loop.start()
    with pytest.raises(BudgetTooSmall) as refused:
        async with rig.loop.submit(make(budget_s=0.05)):
            pass
    await rig.loop.stop()
    assert refused.value.least_budget_ms == pytest.approx(100, abs=1)
    assert rig.engine.released == []


async def test_foreign_work_that_is_due_earlier_is_counted() -> None:
    due_s = time.monotonic() + 0.1
    rig = Rig(step_ms=10.0, others=((due_s, 500.0),))
    rig.loop.start()
    with pytest.raises(Shed) as refused:
        async with rig.loop.submit(make(budget_s=0.4)):
            pass
    await rig.loop.stop()
    assert refused.value.retry_after_s is not None
    assert 0 < refused.value.retry_after_s < 0.6


async def test_a_new_request_joins_at_the_next_step(rig: Rig) -> None:
    async with rig.loop.submit(make()) as first, rig.loop.submit(make()) as second:
        rig.engine.gate.set()
        await asyncio.gather(outcome(first), outcome(second))
    assert [first.key, second.key] in rig.engine.batches


async def test_the_loop_runs_the_policy_that_it_is_given() -> None:
    """Request-level batching: nobody joins a batch that has begun, and the last is done last though it is due first."""
    rig = Rig(max_batch=2)
    rig.loop.policy = policy_of("fifo:2", [LADDER])
    rig.loop.start()
    async with AsyncExitStack() as stack:
        tickets = [await stack.enter_async_context(rig.loop.submit(make(budget_s=s))) for s in (30, 20, 10)]
        rig.engine.gate.set()
        await asyncio.gather(*(outcome(ticket) for ticket in tickets))
    await rig.loop.stop()
    batches = [set(batch) for batch in rig.engine.batches]
    assert all(after <= before or not after & before for before, after in itertools.pairwise(batches))
    assert batches[-1] == {tickets[-1].key}
    assert {ticket.plan.reason for ticket in tickets if ticket.plan} == {common_pb2.RUNG_REASON_POLICY}


async def test_a_refusal_does_not_wait_for_a_decision_that_is_being_made() -> None:
    rig = Rig(step_ms=10_000.0, max_batch=1)
    rig.loop.start()
    deciding, decided = threading.Event(), threading.Event()

    def decide() -> None:
        with rig.loop._changed:
            deciding.set()
            decided.wait(60)

    async with rig.loop.submit(make(budget_s=19)):
        holder = threading.Thread(target=decide)
        holder.start()
        await asyncio.to_thread(deciding.wait)
        try:
            with pytest.raises(Shed):
                async with rig.loop.submit(make(budget_s=18)):
                    pass
            with pytest.raises(BudgetTooSmall):
                async with rig.loop.submit(make(budget_s=5)):
                    pass
        finally:
            decided.set()
            holder.join()
    rig.engine.gate.set()
    await rig.loop.stop()


async def test_leaving_cancels_within_one_step(rig: Rig) -> None:
    async with rig.loop.submit(make()) as ticket:
        pass
    rig.engine.gate.set()
    while not rig.engine.released:
        await rig.loop.changes().wait()
    assert ticket.steps_executed <= 1
    assert rig.engine.released == [ticket.key]


async def test_a_failing_step_fails_its_batch_and_the_loop_goes_on(rig: Rig) -> None:
    rig.engine.fails = True
    rig.engine.gate.set()
    async with rig.loop.submit(make()) as ticket:
        assert isinstance(await outcome(ticket), Failed)
    rig.engine.fails = False
    async with rig.loop.submit(make()) as ticket:
        assert isinstance(await outcome(ticket), Finished)


async def test_draining_finishes_what_is_admitted_and_refuses_the_rest(rig: Rig) -> None:
    async with rig.loop.submit(make()) as ticket:
        draining = asyncio.create_task(rig.loop.drain())
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            async with rig.loop.submit(make()):
                pass
        rig.engine.gate.set()
        assert isinstance(await outcome(ticket), Finished)
        assert await draining == 1


async def test_draining_waits_for_an_answer_of_several_works(rig: Rig) -> None:
    rig.engine.gate.set()
    with rig.loop.series():
        draining = asyncio.create_task(rig.loop.drain())
        await asyncio.sleep(0)
        later = make()
        later.ticket.follows = True
        async with rig.loop.submit(later) as ticket:
            assert isinstance(await outcome(ticket), Finished)
        with pytest.raises(Draining), rig.loop.series():
            pass
        assert not draining.done()
    assert await draining == 0


async def test_work_whose_deadline_passed_while_it_ran_is_told_so() -> None:
    rig = Rig(step_ms=1.0)
    rig.loop.start()
    async with rig.loop.submit(make(budget_s=0.05)) as ticket:
        asyncio.get_running_loop().call_at(ticket.budget.due_s + 0.01, rig.engine.gate.set)
        event = await outcome(ticket)
    await rig.loop.stop()
    assert isinstance(event, Expired)


async def test_the_device_is_told_what_is_to_come(rig: Rig) -> None:
    async with rig.loop.submit(make()) as ticket:
        assert await asyncio.to_thread(rig.engine.begun.wait, 10)
        assert rig.device.demand == [(ticket.budget.due_s, pytest.approx(1.0))], "the least: one of four is under way"
        assert rig.device.step_end_s is not None, "and the step that runs beside it"
        snapshot = rig.loop.snapshot()
        assert snapshot.in_flight == 1
        assert snapshot.choices[0].option.load.steps_left == 4
        rig.engine.gate.set()
        await outcome(ticket)
    assert rig.device.demand == []


async def test_a_fault_in_a_decision_ends_the_worker_and_tells_its_callers(rig: Rig) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    try:
        async with rig.loop.submit(make()) as ticket:
            rig.scheduler.next_batch = lambda works, now_s, scale: 1 / 0  # type: ignore[assignment]
            rig.engine.gate.set()
            assert isinstance(await outcome(ticket), Failed)
            await asyncio.wait_for(ended.wait(), 10)
        with pytest.raises(Draining):
            async with rig.loop.submit(make()):
                pass
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


class SlowBookkeeping(SumEngine):
    """A step of 10 ms, and 10 ms more to apply it."""

    def __init__(self, clock: SteppedClock) -> None:
        super().__init__()
        self._clock = clock
        self.gate.set()

    def run(self, batch: Batch[Sum]) -> list[int]:
        self._clock.now_s += 0.01
        return super().run(batch)

    def apply(self, batch: Batch[Sum], result: list[int], now_s: float) -> list[tuple[Ticket, Any]]:
        self._clock.now_s += 0.01
        return super().apply(batch, result, now_s)


async def test_the_time_between_steps_is_learned_as_theirs() -> None:
    clock = SteppedClock()
    engine = SlowBookkeeping(clock)
    loop = EngineLoop(SumScheduler(10.0), engine, clock=clock, device=Alone(), observer=Quiet(), name="sum")
    loop.start()
    for _ in range(20):
        work = make()
        work.ticket.budget = Budget(clock.now_s, clock.now_s + 60.0, 0.0)
        work.ticket.target_s = work.ticket.budget.due_s
        async with loop.submit(work) as ticket:
            assert isinstance(await outcome(ticket), Finished)
    scale = loop.snapshot().setting.scale.mean_ms
    await loop.stop()
    assert 1.5 < scale <= 2.0  # three of the four steps of each request follow another at once


async def test_a_worker_at_rest_takes_its_pulse_and_admits_what_it_refused_before() -> None:
    """Calibrated ten thousand times too slow: without a pulse it would refuse this for ever."""
    rig = Rig(step_ms=10_000.0)
    pulse = Pulse(Cost(10_000.0), lambda: None)
    rig.loop = EngineLoop(
        rig.scheduler, rig.engine, clock=time.monotonic, device=rig.device, observer=Quiet(), name="sum", pulse=pulse
    )
    rig.engine.gate.set()
    rig.loop.start()
    with pytest.raises(BudgetTooSmall):
        async with rig.loop.submit(make()):
            pass
    await asyncio.wait_for(rig.loop.changes().wait(), 10)
    async with rig.loop.submit(make()) as ticket:
        assert isinstance(await outcome(ticket), Finished)
    await rig.loop.stop()


async def test_callers_are_told_what_more_urgent_work_will_take(rig: Rig) -> None:
    """Steps are said to take 1 ms and take far longer to come round; the plans learn it."""
    told = []
    for _ in range(12):
        work = make(budget_s=30)
        async with rig.loop.submit(work) as ticket:
            assert ticket.plan is not None
            told.append(ticket.plan.predicted_p50_ms)
            rig.engine.gate.clear()
            asyncio.get_running_loop().call_later(0.05, rig.engine.gate.set)
            await outcome(ticket)
    assert told[-1] > 2 * told[0]
    assert told[-1] <= 30_000


async def test_work_that_becomes_ready_by_itself_is_run_when_the_loop_is_woken(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headway.engine_loop._IDLE_WAIT_S", 3600.0)
    ready, asked, decide = threading.Event(), threading.Event(), rig.scheduler.next_batch

    def next_batch(*arguments: Any) -> Batch[Sum] | None:
        asked.set()
        return decide(*arguments) if ready.is_set() else None

    monkeypatch.setattr(rig.scheduler, "next_batch", next_batch)
    rig.engine.gate.set()
    async with rig.loop.submit(make(number=1)) as ticket:
        await asyncio.to_thread(asked.wait)
        ready.set()
        rig.loop.wake()
        assert (await outcome(ticket)).result == 4
