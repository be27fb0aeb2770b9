"""Identical deterministic requests in flight share one worker's answer, and nobody is worse off for it."""

import asyncio
from typing import Any

import grpc
import pytest

from headway.requests import images_request, service_level, text_request
from headway.v1 import common_pb2

CACHED = common_pb2.RUNG_REASON_CACHED
LONG_S = 30


def request(**level: Any) -> Any:
    return images_request(3, seed=7, level=service_level(**level))


async def served(client: Any, asked: Any, timeout_s: float = LONG_S) -> Any:
    messages = [message async for message in client.images.Generate(asked, timeout=timeout_s)]
    assert messages[0].HasField("plan")
    assert messages[-2].batch.images[0].data == str(3 * int(messages[-1].summary.served.rung.label)).encode()
    return messages[-1].summary.served


def joined(mesh: Any) -> int:
    return int(mesh.router_service.metrics.result_cache.labels("image", "joined")._value.get())


async def begun(worker: Any, calls: int) -> None:
    async with asyncio.timeout(LONG_S):
        while len(worker.servicer.budgets) < calls:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def waiting(mesh: Any, count: int) -> None:
    async with asyncio.timeout(LONG_S):
        while joined(mesh) < count:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_the_same_request_in_flight_is_computed_once(mesh: Any) -> None:
    worker = await mesh.worker(closed=True)
    client = await mesh.router(worker)
    first = asyncio.create_task(served(client, request()))
    await begun(worker, 1)
    others = [asyncio.create_task(served(client, request())) for _ in range(5)]
    await waiting(mesh, 5)
    worker.engine.gate.set()
    answers = await asyncio.gather(first, *others)
    assert [answer.reason == CACHED for answer in answers] == [False] + [True] * 5
    assert {answer.worker_id for answer in answers} == {"image-one"}
    assert len(worker.servicer.budgets) == 1
    assert (await served(client, request())).reason != CACHED  # nothing is kept behind the last one
    assert len(worker.servicer.budgets) == 2


async def test_who_waited_goes_on_alone_when_the_first_goes_away(mesh: Any) -> None:
    worker = await mesh.worker(closed=True)
    client = await mesh.router(worker)
    first = client.images.Generate(request(), timeout=LONG_S)
    assert (await first.read()).HasField("plan")
    second = asyncio.create_task(served(client, request()))
    await waiting(mesh, 1)
    first.cancel()
    await begun(worker, 2)
    worker.engine.gate.set()
    assert (await second).reason != CACHED


async def test_better_quality_than_the_first_is_to_bring_is_not_waited_for(mesh: Any) -> None:
    worker = await mesh.worker(closed=True)
    client = await mesh.router(worker)
    low = asyncio.create_task(served(client, request(exact="1")))
    await begun(worker, 1)
    best = asyncio.create_task(served(client, request()))
    await begun(worker, 2)
    third = asyncio.create_task(served(client, request(at_least="nfe=2")))  # joins the better one
    await waiting(mesh, 1)
    worker.engine.gate.set()
    answers = await asyncio.gather(low, best, third)
    assert [answer.rung.label for answer in answers] == ["1", "4", "4"]
    assert [answer.reason == CACHED for answer in answers] == [False, False, True]
    assert len(worker.servicer.budgets) == 2


async def test_who_has_less_time_than_the_first_goes_alone_in_time(mesh: Any) -> None:
    workers = [await mesh.worker(name=name, closed=True) for name in "ab"]
    client = await mesh.router(*workers)
    first = client.images.Generate(request(), timeout=LONG_S)
    hangs = (await first.read()).plan.worker_id
    for worker in workers:
        if worker.servicer.runtime.identity.worker_id != hangs:
            worker.engine.gate.set()
    await client.until(lambda entries: sum(entry.in_flight for entry in entries) == 1)
    second = await served(client, request(), timeout_s=5)
    assert (second.worker_id != hangs, second.reason == CACHED) == (True, False)
    assert joined(mesh) == 1
    first.cancel()


async def test_a_refusal_is_not_shared(mesh: Any) -> None:
    worker = await mesh.worker(closed=True)
    client = await mesh.router(worker, failover_wait_s=0)
    first = asyncio.create_task(served(client, request()))
    await begun(worker, 1)
    second = asyncio.create_task(served(client, request()))
    await waiting(mesh, 1)
    await mesh.end(worker)
    with pytest.raises(grpc.aio.AioRpcError):
        await first
    with pytest.raises(grpc.aio.AioRpcError):
        await second


async def test_other_seeds_and_unseeded_images_are_computed_each_for_itself(mesh: Any) -> None:
    worker = await mesh.worker(closed=True)
    client = await mesh.router(worker)
    asked = [images_request(3, seed=1), images_request(3, seed=2), images_request(3), images_request(3)]
    answers = [asyncio.create_task(served(client, each)) for each in asked]
    await begun(worker, 4)
    worker.engine.gate.set()
    await asyncio.gather(*answers)
    assert joined(mesh) == 0


async def story(client: Any, asked: Any) -> tuple[list[int], Any]:
    messages = [message async for message in client.text.Generate(asked, timeout=LONG_S)]
    tokens = [token for message in messages for token in message.chunk.token_ids]
    return tokens, messages[-1].summary.served


async def test_the_same_text_in_flight_is_computed_once_but_not_for_who_waits_for_its_first_token(mesh: Any) -> None:
    worker = await mesh.worker("text", closed=True)
    client = await mesh.router(worker)
    patient, soon = text_request("abc", temperature=0.0), text_request("abc", temperature=0.0)
    soon.service_level.first_token_target.FromMilliseconds(500)
    first = asyncio.create_task(story(client, patient))
    await begun(worker, 1)
    joins = asyncio.create_task(story(client, patient))
    async with asyncio.timeout(LONG_S):
        while not mesh.router_service.metrics.result_cache.labels("text", "joined")._value.get():  # noqa: ASYNC110
            await asyncio.sleep(0)
    alone = asyncio.create_task(story(client, soon))
    await begun(worker, 2)
    worker.engine.gate.set()
    answers = await asyncio.gather(first, joins, alone)
    assert [tokens for tokens, _ in answers] == [[3, 6, 9, 12]] * 3
    assert [served.reason == CACHED for _, served in answers] == [False, True, False]
    assert len(worker.servicer.budgets) == 2


async def test_it_can_be_switched_off(mesh: Any) -> None:
    worker = await mesh.worker(closed=True)
    client = await mesh.router(worker, single_flight=False)
    answers = [asyncio.create_task(served(client, request())) for _ in range(2)]
    await begun(worker, 2)
    worker.engine.gate.set()
    assert [answer.reason == CACHED for answer in await asyncio.gather(*answers)] == [False, False]
