"""Requests that wait at the router: who asks next, who leaves, and that none waits for nothing."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.errors import BadInput, NoWorker, Shed, TooManyCalls, from_rpc_error
from headway.requests import images_request, service_level
from headway.v1 import common_pb2, errors_pb2
from services.router.fairness import HALF_LIFE_S, Shares
from services.router.waiting import Place, WaitingRoom, may_wait

IMAGE, TEXT = common_pb2.KIND_IMAGE, common_pb2.KIND_TEXT
LONG_S = 30


def shares_of(weights: Mapping[str, float]) -> Shares:
    return Shares(lambda tenant: weights.get(tenant, 1.0), asyncio.get_running_loop().time)


def room_of(most: int, shares: Shares | None = None) -> WaitingRoom:
    return WaitingRoom(most, shares or shares_of({}), asyncio.get_running_loop().time)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, -1), st.integers(0, 50)), min_size=1, max_size=12), st.integers(1, 12))
def test_the_most_urgent_stay_and_ask_first_one_at_a_time(orders: list[tuple[int, int]], most: int) -> None:
    async def check() -> None:
        room = room_of(most)
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
    room = room_of(1)
    image, text = Place(IMAGE, (-1, 0)), Place(TEXT, (-3, 0))
    room.enter(image)
    room.enter(text)
    assert await room.turn(text, 0.0, LONG_S)
    assert await room.turn(image, 0.0, LONG_S)
    assert (room.count(IMAGE), room.count(TEXT)) == (1, 1)


async def test_who_is_refused_again_lets_the_next_one_ask_meanwhile() -> None:
    room = room_of(2)
    first, second = Place(IMAGE, (-1, 0)), Place(IMAGE, (-1, 1))
    room.enter(first)
    room.enter(second)
    assert await room.turn(first, 0.0, LONG_S)
    async with asyncio.timeout(LONG_S):
        waiting = asyncio.create_task(room.turn(second, 0.0, LONG_S))
        await asyncio.sleep(0.03)
        assert not waiting.done(), "one at a time"
        room.asked(first)
        assert await waiting


async def test_who_has_seconds_is_asked_for_less_often() -> None:
    room = room_of(2)
    patient, pressed = Place(IMAGE, (-1, 0)), Place(IMAGE, (-1, 1))
    began_s = asyncio.get_running_loop().time()
    for place, spare_s in ((patient, 16.0), (pressed, 0.4)):
        room.enter(place)
        task = asyncio.create_task(room.turn(place, 5.0, spare_s))
        await asyncio.sleep(0)
        task.cancel()
    assert patient.ready_s - began_s >= 2.0
    assert pressed.ready_s - began_s < 1.0


async def test_who_has_no_time_to_spare_leaves() -> None:
    room = room_of(2)
    first, second = Place(IMAGE, (-1, 0)), Place(IMAGE, (-1, 1))
    room.enter(first)
    room.enter(second)
    assert await room.turn(first, 0.0, LONG_S)
    assert not await room.turn(second, 0.0, 0.02)  # while the first one asks
    none = room_of(0)
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


async def order_of(room: WaitingRoom, shares: Shares, places: list[Place], work_ms: float) -> list[str]:
    """The tenants in the order in which they ask; each is served `work_ms`."""
    asked: list[str] = []

    async def ask(place: Place) -> None:
        if await room.turn(place, 0.0, LONG_S):
            asked.append(place.tenant)
            shares.served(place.tenant, work_ms)
            room.leave(place)

    blocked = Place(IMAGE, (-9, 0))
    room._asking[IMAGE] = blocked
    async with asyncio.timeout(LONG_S), asyncio.TaskGroup() as tasks:
        for place in places:
            room.enter(place)
            tasks.create_task(ask(place))
        await asyncio.sleep(0.03)
        room.asked(blocked)
    return asked


async def test_tenants_take_turns_by_weight_and_a_flood_waits_for_itself() -> None:
    """Forty of one tenant are due before all others; two that weigh 1 and 3 get their share all the same."""
    shares = shares_of({"heavy": 3.0})
    flood = [Place(IMAGE, (-2, number), "flood") for number in range(40)]
    light = [Place(IMAGE, (-2, 100 + number), "light") for number in range(8)]
    heavy = [Place(IMAGE, (-2, 200 + number), "heavy") for number in range(24)]
    asked = await order_of(room_of(99, shares), shares, flood + light + heavy, 100.0)
    assert len(asked) == 72
    first = Counter(asked[:40])
    assert abs(first["flood"] - 8) <= 1
    assert abs(first["light"] - 8) <= 1
    assert abs(first["heavy"] - 24) <= 1


async def test_priority_goes_before_fairness_and_urgency_behind_it() -> None:
    shares = shares_of({})
    shares.served("busy", 1000.0)
    places = [
        Place(IMAGE, (-2, 2), "idle"),
        Place(IMAGE, (-2, 1), "busy"),
        Place(IMAGE, (-3, 9), "busy"),
    ]
    assert await order_of(room_of(9, shares), shares, places, 1.0) == ["busy", "idle", "busy"]


async def test_a_tenant_that_fills_the_room_pushes_out_its_own() -> None:
    room = room_of(4, shares_of({"heavy": 2.0}))
    other = Place(IMAGE, (-2, 500), "other")
    high = Place(IMAGE, (-3, 999), "flood")
    heavy = [Place(IMAGE, (-2, 600 + number), "heavy") for number in range(2)]
    for place in (other, high, *heavy):
        room.enter(place)
    for number in range(10):
        place = Place(IMAGE, (-2, number), "flood")
        room.enter(place)
    assert room.count(IMAGE) == 4
    assert room.holds(high)
    assert room.holds(other) or room.holds(heavy[0])
    assert sum(place.tenant == "flood" for place in room._places) <= 2


async def test_work_long_ago_does_not_count_and_many_tenants_are_forgotten() -> None:
    now_s = 0.0
    shares = Shares(lambda tenant: 2.0, lambda: now_s)
    shares.served("a", 100.0)
    assert shares.used("a") == 50.0
    now_s = HALF_LIFE_S
    assert shares.used("a") == 25.0
    for number in range(20_000):
        shares.served(f"t{number}", 5.0)
    assert len(shares._got) <= 4096
    assert shares.used("a") == 25.0, "who got the most is remembered"
