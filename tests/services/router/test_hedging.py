"""A second worker for a frame that is late: the first answer is taken, the other call ends, and hedges are bounded."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import grpc
import pytest
from sum_worker import LADDER

from headway.continuing import Again
from headway.cost import Cost, Load, StepCurve
from headway.deadline import Budget
from headway.errors import Failed, Shed
from headway.telemetry import Metrics
from headway.v1 import common_pb2, splat_pb2
from services.router.forwarding import Outgoing
from services.router.hedging import Hedger
from services.router.methods import GENERATE_IMAGES, RENDER, TOKENIZE
from services.router.placement import InTime, Placement
from services.router.view import Asset, Description, Report, View

REQUEST = splat_pb2.RenderRequest(options=splat_pb2.FrameOptions(width=5, height=5))
LONG_S = 30


async def until(condition: Any) -> None:
    async with asyncio.timeout(LONG_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


def hedges(mesh: Any, result: str) -> float:
    return float(mesh.router_service.metrics.hedges.labels("splat", result)._value.get())


async def both(mesh: Any, **settings: Any) -> tuple[Any, Any, Any]:
    """A worker that should be quick and is stuck, one that is slower, and a router."""
    stuck = await mesh.worker("splat", name="stuck", step_ms=5, closed=True)
    other = await mesh.worker("splat", name="other", step_ms=50, closed=True)
    return stuck, other, await mesh.router(stuck, other, single_flight=False, **settings)


async def test_a_frame_that_is_late_comes_from_another_worker_and_the_first_call_ends(mesh: Any) -> None:
    stuck, other, client = await both(mesh, hedge_quantile=0.9)
    other.engine.gate.set()
    call = client.splats.Render(REQUEST, timeout=20)
    answer = await call
    assert (answer.served.worker_id, answer.served.attempts) == ("splat-other", 2)
    assert dict(await call.trailing_metadata())["sum-worker"] == "splat-other"
    assert hedges(mesh, "won") == 1
    stuck.engine.gate.set()
    await until(lambda: stuck.engine.released == 1)


async def test_the_first_worker_may_still_win(mesh: Any) -> None:
    stuck, other, client = await both(mesh, hedge_quantile=0.9)
    call = asyncio.ensure_future(client.splats.Render(REQUEST, timeout=20))
    await until(lambda: other.servicer.budgets)
    stuck.engine.gate.set()
    answer = await call
    assert (answer.served.worker_id, answer.served.attempts) == ("splat-stuck", 2)
    assert hedges(mesh, "lost") == 1
    other.engine.gate.set()
    await until(lambda: other.engine.released == 1)


async def test_without_the_setting_nobody_else_is_asked(mesh: Any) -> None:
    stuck, other, client = await both(mesh)
    call = asyncio.ensure_future(client.splats.Render(REQUEST, timeout=20))
    await until(lambda: stuck.servicer.budgets)
    await asyncio.sleep(0.2)  # ten times what the frame should take
    assert not other.servicer.budgets
    stuck.engine.gate.set()
    answer = await call
    assert (answer.served.worker_id, answer.served.attempts) == ("splat-stuck", 1)


async def test_a_caller_who_leaves_ends_both_calls(mesh: Any) -> None:
    stuck, other, client = await both(mesh, hedge_quantile=0.9)
    call = client.splats.Render(REQUEST, timeout=20)
    await until(lambda: other.servicer.budgets)
    call.cancel()
    with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
        await call
    for worker in (stuck, other):
        worker.engine.gate.set()
    await until(lambda: stuck.engine.released == other.engine.released == 1)


class Workers:
    """Workers that answer as the test says, by address."""

    def __init__(self, **answers: Any) -> None:
        self.answers, self.asked, self.may_retry = answers, list[str](), True

    async def messages(self, outgoing: Outgoing, placements: Iterable[Placement]) -> AsyncGenerator[bytes, None]:
        address = next(iter(placements)).view.address
        self.asked.append(address)
        answer = self.answers[address]
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        yield answer


def placement(address: str, finish_ms: float = 1.0) -> Placement:
    asset = Asset("a", "a", LADDER)
    description = Description(address, common_pb2.KIND_SPLAT, "", "v", (asset,))
    curve = StepCurve(((1, Cost(1.0)),))
    report = Report(0.0, (), {("", ""): curve}, 1, 0.0, 0, 0.0, False)
    view = View(address, description, report, (), 0)
    load = Load(9.0, 1, 1)
    return Placement(view, asset, LADDER.rungs, LADDER.top, load, Cost(finish_ms), InTime.FOR_TARGET)


def outgoing(*others: Placement, method: Any = RENDER, budget_s: float = LONG_S) -> Outgoing:
    answer = Again(b"", None)
    return Outgoing(method, answer, Budget(0.0, budget_s, 0.0), lambda: others, lambda trailers: None)


async def one(hedger: Hedger, call: Outgoing, first: Placement, second: Placement) -> bytes:
    return [message async for message in hedger.messages(call, [first, second])][-1]


FINE = splat_pb2.RenderResponse(served=common_pb2.Served(attempts=1)).SerializeToString()


def hedger_over(workers: Workers) -> Hedger:
    return Hedger(workers, 0.9, Metrics("router", "0"), lambda: 0.0)


async def test_hedges_are_one_in_ten_of_many_and_none_while_retries_are_throttled() -> None:
    workers = Workers(slow=None, quick=FINE)
    hedger, slow, quick = hedger_over(workers), placement("slow"), placement("quick")
    call = outgoing(quick)
    served = 0
    while hedger._throttle.allows:
        async with asyncio.timeout(LONG_S):
            await one(hedger, call, slow, quick)
        served += 1
    assert 10 <= served <= 12
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await one(hedger, call, slow, quick)
    workers.answers["slow"] = FINE
    for _ in range(30):
        await one(hedger, call, slow, quick)
    workers.answers["slow"], workers.may_retry = None, False
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await one(hedger, call, slow, quick)
    workers.may_retry = True
    await one(hedger, call, slow, quick)


async def test_a_hedge_that_fails_changes_nothing() -> None:
    for error in (Shed("full"), Failed("broken")):
        workers = Workers(first=None, second=error)
        first, second = placement("first"), placement("second")
        task = asyncio.create_task(one(hedger_over(workers), outgoing(second), first, second))
        await until(lambda asked=workers.asked: asked == ["first", "second"])
        await asyncio.sleep(0.01)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_where_both_fail_the_caller_is_told_what_the_first_said() -> None:
    workers = Workers(first=Shed("first"), second=Failed("second"))
    with pytest.raises(Shed, match="first"):
        await one(hedger_over(workers), outgoing(placement("second")), placement("first"), placement("second"))
    assert workers.asked == ["first"], "a refusal is immediate"


async def test_only_who_can_be_in_time_and_was_not_asked_is_asked() -> None:
    workers = Workers(first=None, second=FINE)
    call = outgoing(placement("first"), placement("second", finish_ms=2000.0), budget_s=1.0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await one(hedger_over(workers), call, placement("first"), placement("second"))
    assert workers.asked == ["first"]


@pytest.mark.parametrize(("method", "repeatable"), [(RENDER, True), (GENERATE_IMAGES, False), (TOKENIZE, False)])
def test_only_frames_are_hedged(method: Any, repeatable: bool) -> None:
    assert method.repeatable is repeatable
