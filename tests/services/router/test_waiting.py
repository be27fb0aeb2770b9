"""Requests that wait at the router: who asks next, who leaves, and that none waits for nothing."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.errors import BadInput, NoWorker, Shed, TooManyCalls, from_rpc_error
from headway.requests import images_request, service_level
from headway.v1 import common_pb2, errors_pb2
from services.router.waiting import Place, WaitingRoom, may_wait

IMAGE, TEXT = common_pb2.KIND_IMAGE, common_pb2.KIND_TEXT
LONG_S = 30


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, -1), st.integers(0, 50)), min_size=1, max_size=12), st.integers(1, 12))
def test_the_most_urgent_stay_and_ask_first_one_at_a_time(orders: list[tuple[int, int]], most: int) -> None:
    async def check() -> None:
        room = WaitingRoom(most, asyncio.get_running_loop().time)
        places = [Place(IMAGE, order) for order in orders]
        for place in places:
            room.enter(place)
        stayed = [place for place in places if room.holds(place)]
        assert sorted(place.order for place in stayed) == sorted(orders)[:most]
        asked: list[tuple[int, float]] = []
        asking = 0

        async def ask(place: Place) -> None:
            nonlocal asking
            if await room.turn(place, 0.0, LONG_S):
                asking += 1
                assert asking == 1
                asked.append(place.order)
                await asyncio.sleep(0)
                asking -= 1
                room.leave(place)

        async with asyncio.timeout(LONG_S), asyncio.TaskGroup() as tasks:
            blocked = Place(IMAGE, (-9, 0))  # asks while the others become ready
            room._asking[IMAGE] = blocked
            for place in places:
                tasks.create_task(ask(place))
            await asyncio.sleep(0.03)
            room.asked(blocked)
        assert asked == sorted(place.order for place in stayed)
        assert room.count(IMAGE) == 0

    asyncio.run(check())


async def test_kinds_do_not_wait_for_each_other() -> None:
    room = WaitingRoom(1, asyncio.get_running_loop().time)
    image, text = Place(IMAGE, (-1, 0)), Place(TEXT, (-3, 0))
    room.enter(image)
    room.enter(text)
    assert await room.turn(text, 0.0, LONG_S)
    assert await room.turn(image, 0.0, LONG_S)
    assert (room.count(IMAGE), room.count(TEXT)) == (1, 1)


async def test_who_has_no_time_to_spare_leaves() -> None:
    room = WaitingRoom(2, asyncio.get_running_loop().time)
    first, second = Place(IMAGE, (-1, 0)), Place(IMAGE, (-1, 1))
    room.enter(first)
    room.enter(second)
    assert await room.turn(first, 0.0, LONG_S)
    assert not await room.turn(second, 0.0, 0.02)  # while the first one asks
    none = WaitingRoom(0, asyncio.get_running_loop().time)
    none.enter(first)
    assert not await none.turn(first, 0.0, LONG_S)


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (Shed("full", retry_after_s=1.0), True),
        (TooManyCalls("full", retry_after_s=0.2), True),
        (Shed("full"), False),
        (NoWorker("none", retry_after_s=1.0), False),
        (BadInput("x", "y"), False),
    ],
)
def test_only_refusals_for_load_are_waited_out(error: Any, waits: bool) -> None:
    assert may_wait(error) is waits


async def answer(client: Any, timeout_s: float) -> str:
    request = images_request(1, level=service_level(exact="4"))
    messages = [message async for message in client.images.Generate(request, timeout=timeout_s)]
    return str(messages[-1].summary.served.worker_id)


def waiting(mesh: Any) -> float:
    return float(mesh.router_service.metrics.waiting.labels("image")._value.get())


async def until(condition: Any) -> None:
    async with asyncio.timeout(LONG_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def busy(mesh: Any, step_ms: float, **settings: Any) -> tuple[Any, Any, list[asyncio.Task[str]]]:
    """A worker with a batch in hand that takes five of its steps and varies as much as it takes.

    Four steps behind it most likely end after 7, but cannot be promised before 15.
    """
    worker = await mesh.worker(step_ms=step_ms, step_var_ms2=step_ms**2, closed=True)
    client = await mesh.router(worker, **settings)
    first = [asyncio.create_task(answer(client, 13 * step_ms / 1000)) for _ in range(8)]
    await client.until(lambda entries: entries[0].in_flight == 8)
    return worker, client, first


async def test_what_cannot_be_promised_waits_and_is_served_when_it_can(mesh: Any) -> None:
    worker, client, first = await busy(mesh, step_ms=1500)
    late = asyncio.create_task(answer(client, 21))
    await until(lambda: waiting(mesh) == 1 or late.done())
    assert not late.done()
    worker.engine.gate.set()
    assert await late == "image-one"
    assert waiting(mesh) == 0
    await asyncio.gather(*first)


async def test_what_becomes_hopeless_leaves_before_its_deadline(mesh: Any) -> None:
    worker, client, first = await busy(mesh, step_ms=400)
    with pytest.raises(Exception, match="refused under load") as refusal:
        await answer(client, 5.6)
    assert from_rpc_error(refusal.value).reason == errors_pb2.ERROR_REASON_SHED
    assert waiting(mesh) == 0
    worker.engine.gate.set()
    await asyncio.gather(*first, return_exceptions=True)


async def test_without_room_refusals_are_immediate(mesh: Any) -> None:
    worker, client, first = await busy(mesh, step_ms=1500, waiting=0)
    with pytest.raises(Exception, match="refused under load"):
        await answer(client, 21)
    worker.engine.gate.set()
    await asyncio.gather(*first)
