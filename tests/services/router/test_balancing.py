"""A client over several routers: an answer whose router dies, hangs or drains goes on through another one."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from headway.balancing import BalancedHeadway
from headway.client import AsyncHeadway
from headway.config import check_target
from headway.errors import HeadwayError
from headway.requests import images_request, text_request
from headway.v1 import router_pb2

TOKENS = [3, 6, 9, 12]


class RouterProcess:
    def __init__(self, process: asyncio.subprocess.Process, address: str) -> None:
        self.process, self.address = process, address

    async def healthy(self) -> None:
        """Returns when all its workers are."""
        async with asyncio.timeout(30), AsyncHeadway(self.address) as client:
            while True:
                try:
                    workers = (await client.workers()).workers
                except HeadwayError:  # it does not listen yet
                    workers = []
                if workers and all(each.health == router_pb2.WORKER_HEALTH_HEALTHY for each in workers):
                    return
                await asyncio.sleep(0.05)


@pytest.fixture
async def router_process(tmp_path: Any) -> AsyncIterator[Callable[..., Awaitable[RouterProcess]]]:
    started: list[RouterProcess] = []

    async def start(*workers: str) -> RouterProcess:
        address = check_target(f"unix:{tmp_path}/{len(started)}.sock")
        command = ("-m", "services.router.main", "--listen", address, "--workers", ",".join(workers))
        quiet = ("--metrics-port", "off", "--log-level", "error")
        process = await asyncio.create_subprocess_exec(sys.executable, *command, *quiet)
        started.append(RouterProcess(process, address))
        return started[-1]

    yield start
    for router in started:
        if router.process.returncode is None:
            router.process.kill()
        await router.process.wait()


async def two(mesh: Any, router_process: Any, steps: int | None = None) -> tuple[Any, list[RouterProcess]]:
    """A worker that hangs after so many steps, and two routers in front of it."""
    worker = await mesh.worker("text")
    worker.engine.steps = steps
    routers = [await router_process(f"text={worker.address}") for _ in range(2)]
    for router in routers:
        await router.healthy()
    return worker, routers


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - the worker counts calls, and tells nobody
            await asyncio.sleep(0.01)


def go_on(worker: Any) -> None:
    worker.engine.steps = None
    worker.engine.gate.set()


def check(parts: list[Any]) -> None:
    assert [part.WhichOneof("part") for part in parts] == ["plan", *["chunk"] * 4, "summary"]
    chunks = [part.chunk for part in parts[1:-1]]
    assert [token for chunk in chunks for token in chunk.token_ids] == TOKENS
    assert [chunk.offset for chunk in chunks] == [0, 1, 2, 3]
    assert parts[-1].summary.usage.completion_tokens == 4


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_text_goes_on_through_the_other_router(mesh: Any, router_process: Any, how: signal.Signals) -> None:
    worker, routers = await two(mesh, router_process, steps=2)
    async with BalancedHeadway([router.address for router in routers]) as client:
        messages = client.text(text_request("abc"), deadline_s=25)
        parts = [await anext(messages) for _ in range(3)]
        routers[1].process.send_signal(how)  # whose turn is first
        rest = asyncio.ensure_future(collected(messages))
        await until(lambda: len(worker.servicer.budgets) == 2)
        go_on(worker)
        check(parts + await rest)
        assert len(worker.servicer.budgets) == 2


async def test_a_router_that_drains_finishes_what_it_has_and_gets_nothing_new(mesh: Any, router_process: Any) -> None:
    worker, routers = await two(mesh, router_process, steps=2)
    async with BalancedHeadway([router.address for router in routers]) as client:
        messages = client.text(text_request("abc"), deadline_s=25)
        parts = [await anext(messages) for _ in range(3)]
        routers[1].process.send_signal(signal.SIGTERM)
        others = [asyncio.ensure_future(collected(client.text(text_request("abc"), deadline_s=25))) for _ in range(4)]
        await until(lambda: len(worker.servicer.budgets) == 5)
        go_on(worker)
        check(parts + await collected(messages))
        for other in others:
            check(await other)
        assert await routers[1].process.wait() == 0


async def test_what_a_worker_refuses_is_not_asked_of_another_router(mesh: Any, router_process: Any) -> None:
    worker, routers = await two(mesh, router_process)
    async with BalancedHeadway([router.address for router in routers]) as client:
        with pytest.raises(HeadwayError) as refused:
            await collected(client.text(text_request("a" * 1001), deadline_s=25))
    assert refused.value.reason_name == "BAD_INPUT"
    assert len(worker.servicer.budgets) == 1


async def test_without_any_router_a_call_waits_for_one_until_its_deadline(tmp_path: Any) -> None:
    async with BalancedHeadway([f"unix:{tmp_path}/nobody.sock"]) as client:
        with pytest.raises(HeadwayError) as failed:
            await collected(client.images(images_request(1), deadline_s=0.5))
    assert failed.value.status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def collected(messages: Any) -> list[Any]:
    return [message async for message in messages]


def test_no_address_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        BalancedHeadway([])
