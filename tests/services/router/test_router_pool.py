"""The parts between placement and the network: names, breaker, corrections, calls."""

import asyncio
import socket

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.cost import Load
from headway.errors import Draining
from headway.telemetry import Metrics
from headway.upstream import Connection, UpstreamCredentials
from headway.v1 import common_pb2, router_pb2, worker_pb2
from services.router.breaker import Breaker
from services.router.calls import Calls
from services.router.config import WorkerAddress
from services.router.identity import Identity
from services.router.ledger import REPORT_INTERVAL_S
from services.router.member import Member
from services.router.pool import Pool, Upstream
from services.router.resolver import is_name, resolve
from services.router.view import read_description


class Now:
    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def test_addresses_and_names_are_told_apart() -> None:
    assert [is_name(address) for address in ("workers.mesh:1", "10.0.0.1:1", "[::1]:1", "unix:/x")] == [
        True,
        False,
        False,
        False,
    ]


async def test_a_name_resolves_to_addresses_of_one_family() -> None:
    assert await resolve("localhost:50") == {"127.0.0.1:50"}
    with pytest.raises(socket.gaierror):
        await resolve("no-such-host.invalid:50")


async def test_addresses_behind_a_name_come_and_go_and_stay_while_it_cannot_be_resolved() -> None:
    answers: list[frozenset[str] | OSError] = [
        OSError("not yet"),
        frozenset({"127.0.0.1:1", "127.0.0.1:2"}),
        OSError("name server gone"),
        frozenset({"127.0.0.1:2", "127.0.0.1:3"}),
    ]
    seen: list[set[str]] = []
    all_seen = asyncio.Event()

    async def lookup(address: str) -> frozenset[str]:
        await asyncio.sleep(0)
        seen.append({entry.address for entry in pool.entries()})
        if not answers:
            all_seen.set()
            await asyncio.Event().wait()
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    worker = WorkerAddress(common_pb2.KIND_TEXT, "workers.mesh:1")
    metrics = Metrics("router", "0")
    pool = Pool(
        [worker],
        Upstream(UpstreamCredentials(), Identity(UpstreamCredentials(), None), 1 << 20, 0.02, 0.0),
        metrics,
        Now(),
        lookup,
    )
    running = asyncio.create_task(pool.run())
    async with asyncio.timeout(10):
        await all_seen.wait()
    one, two, three = "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"
    assert seen == [set(), {"workers.mesh:1"}, {one, two}, {one, two}, {two, three}]
    assert metrics.workers.labels("text", "lost")._value.get() == 2
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert pool.entries() == []


def test_a_breaker_opens_after_failures_in_a_row_and_probes_once_a_while() -> None:
    now = Now()
    breaker = Breaker(now, failures=2, rest_s=1.0)
    breaker.failed()
    breaker.worked()
    breaker.failed()
    assert breaker.allows()
    breaker.failed()
    assert not breaker.allows()
    now.s += 1.0
    assert [breaker.allows(), breaker.allows()] == [True, False]
    breaker.failed()
    assert not breaker.allows()
    now.s += 1.0
    assert breaker.allows()
    breaker.worked()
    assert [breaker.allows(), breaker.allows()] == [True, True]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["ok", "fail", "wait"]), max_size=40))
def test_a_dead_dependency_is_tried_at_most_once_a_rest(steps: list[str]) -> None:
    now = Now()
    breaker = Breaker(now, failures=3, rest_s=1.0)
    in_a_row, tries_s = 0, list[float]()
    for step in steps:
        now.s += 0.6 if step == "wait" else 0.0
        if step == "wait" or not breaker.allows():
            continue
        if in_a_row >= 3:
            assert not tries_s or now.s - tries_s[-1] >= 1.0 - 1e-9
        tries_s.append(now.s)
        if step == "ok":
            breaker.worked()
            in_a_row = 0
        else:
            breaker.failed()
            in_a_row += 1


async def member_with_report() -> tuple[Member, Now, grpc.aio.Channel]:
    now = Now()
    connection = Connection("127.0.0.1:1", UpstreamCredentials())
    member = Member(
        "127.0.0.1:1",
        common_pb2.KIND_IMAGE,
        connection,
        Identity(UpstreamCredentials(), None),
        clock=now,
        changed=lambda: None,
        others=lambda: False,
        may_leave=lambda: False,
    )
    described = worker_pb2.DescribeResponse(worker_id="w", kind=common_pb2.KIND_IMAGE)
    described.assets.add(name="sums", hash="h").ladder.rungs.add(label="1", quality=1.0, nfe=1)
    member.description = read_description(described, common_pb2.KIND_IMAGE)
    member._take(worker_pb2.WorkerState(worker_id="w", max_batch=8))
    return member, now, connection.channel


async def test_what_was_sent_counts_until_a_report_knows_of_it() -> None:
    member, now, channel = await member_with_report()
    state = worker_pb2.WorkerState(worker_id="w", max_batch=8)

    def in_flight() -> int:
        view = member.view()
        assert view is not None
        return view.in_flight

    with member.sending(Load(now.s + 1, 1, 1)) as sent:
        assert in_flight() == 1
        member._take(state)  # may be from before the request came there
        assert in_flight() == 1
        sent.admitted_s = now.s
        member._take(state)
        assert in_flight() == 0
    with member.sending(Load(now.s + 1, 1, 1)):
        now.s += 3 * REPORT_INTERVAL_S
        member._take(state)
        assert in_flight() == 0
    with member.sending(Load(now.s + 1, 1, 1)):
        pass
    assert in_flight() == 0
    await channel.close()


async def test_only_a_healthy_worker_has_a_view() -> None:
    member, _, channel = await member_with_report()
    assert member.entry().health == router_pb2.WORKER_HEALTH_HEALTHY
    member._take(worker_pb2.WorkerState(worker_id="w", draining=True))
    assert (member.view(), member.entry().health) == (None, router_pb2.WORKER_HEALTH_DRAINING)
    member._take(worker_pb2.WorkerState(worker_id="w"))
    assert member.view() is not None
    member._lose("gone")
    assert (member.view(), member.entry().detail) == (None, "gone")
    await channel.close()


async def test_calls_in_flight_are_waited_for_and_new_ones_refused() -> None:
    calls = Calls()
    with calls.call():
        draining = asyncio.create_task(calls.drain())
        await asyncio.sleep(0)
        with pytest.raises(Draining), calls.call():
            pass
        assert not draining.done()
    assert await draining == 1
