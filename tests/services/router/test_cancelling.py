"""A caller who leaves: the work ends within one step on every path that it may have taken."""

import asyncio
import signal
from typing import Any

import grpc
import pytest
from sum_worker import SumWorker
from test_waiting import answer, busy, until, waiting

from headway.client import AsyncHeadway
from headway.requests import images_request, render_request, text_request
from headway.ticket import Ticket

LONG_S = 60.0


async def admitted(worker: SumWorker) -> Ticket:
    """The ticket of the one request that the worker has, which it holds until its gate opens."""
    async with asyncio.timeout(LONG_S):
        while not worker.loop._works:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    (work,) = worker.loop._works.values()
    ticket: Ticket = work.ticket
    return ticket


async def ends_within_a_step(worker: SumWorker, ticket: Ticket, *, done: int = 0) -> None:
    """`done`: steps that were taken before."""
    async with asyncio.timeout(LONG_S):
        while not ticket.cancelled:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        worker.engine.gate.set()
        while worker.engine.released == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert ticket.steps_executed - done <= 1
    assert not worker.loop._works


def calls_in_flight(mesh: Any) -> float:
    return float(mesh.router_service.load.report().named_metrics["headway.calls_in_flight"])


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("kind", ["text", "image", "splat"])
async def test_through_the_router_and_straight_to_the_worker(mesh: Any, kind: str, direct: bool) -> None:
    worker = await mesh.worker(kind, closed=True)
    await mesh.router(worker)
    async with AsyncHeadway(mesh.router_address, direct=direct) as client:

        async def work() -> None:
            if kind == "splat":
                await client.render(render_request("", width=5), deadline_s=LONG_S)
            stream = (
                client.text(text_request("abc"), deadline_s=LONG_S)
                if kind == "text"
                else client.images(images_request(1), deadline_s=LONG_S)
            )
            async for _ in stream:
                pass

        working = asyncio.create_task(work())
        ticket = await admitted(worker)
        passed_on = calls_in_flight(mesh)
        working.cancel()
        await ends_within_a_step(worker, ticket)
        assert isinstance((await asyncio.gather(working, return_exceptions=True))[0], asyncio.CancelledError)
    assert passed_on == (0 if direct else 1)  # the router has nothing of a call that goes straight


async def test_while_another_worker_goes_on_for_one_that_died(mesh: Any, worker_process: Any) -> None:
    first = await worker_process("text", "2")
    other = await mesh.worker("text", name="other", step_ms=5, closed=True)
    client = await mesh.router(f"text={first.address}", other)
    call = client.text.Generate(text_request("abc"), timeout=LONG_S)
    for _ in range(3):
        await call.read()
    first.process.send_signal(signal.SIGKILL)
    ticket = await admitted(other)
    call.cancel()
    await ends_within_a_step(other, ticket, done=2)


async def test_while_the_router_waits_for_a_worker_that_can_go_on(mesh: Any, worker_process: Any) -> None:
    only = await worker_process("text", "2")
    client = await mesh.router(f"text={only.address}")
    call = client.text.Generate(text_request("abc"), timeout=LONG_S)
    for _ in range(3):
        await call.read()
    await only.end()
    await client.until(lambda workers: workers[0].detail != "")
    call.cancel()
    await until(lambda: calls_in_flight(mesh) == 0)
    assert await call.code() is grpc.StatusCode.CANCELLED


async def test_while_it_waits_for_a_workers_yes(mesh: Any) -> None:
    worker, client, first = await busy(mesh, step_ms=1500)
    late = asyncio.create_task(answer(client, 21))
    await until(lambda: waiting(mesh) == 1 or late.done())
    late.cancel()
    await until(lambda: waiting(mesh) == 0)
    worker.engine.gate.set()
    await asyncio.gather(*first)
    assert worker.engine.released == len(first)  # of the one that waited the worker never had anything
