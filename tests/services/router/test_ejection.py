"""Workers that fail calls while their reports look healthy: left out, probed, taken back slowly, never all of them."""

import random
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sum_worker import SumEngine

from headway.engine import Batch
from headway.errors import Expired, Failed, HeadwayError, Shed, WorkerLost
from headway.requests import images_request
from headway.v1 import router_pb2
from services.router.ejection import FAILURES, LONGEST_REST_S, REST_S, RETURN_S, Ejection, is_fault

EJECTED = router_pb2.WORKER_HEALTH_EJECTED


@dataclass
class Now:
    s: float = 100.0

    def __call__(self) -> float:
        return self.s


@dataclass
class Worker:
    now: Now = field(default_factory=Now)
    changes: int = 0
    may_leave: bool = True

    def __post_init__(self) -> None:
        self.ejection = Ejection(self.now, may_leave=lambda: self.may_leave, changed=self.count)

    def count(self) -> None:
        self.changes += 1

    def call(self, *, works: bool) -> None:
        call = object()
        self.ejection.sent(call)
        (self.ejection.worked if works else self.ejection.failed)(call)
        self.ejection.over(call)

    def share(self) -> float:
        draw = random.Random(1)
        return sum(self.ejection.takes(draw) for _ in range(1000)) / 1000


def ejected() -> Worker:
    worker = Worker()
    for _ in range(FAILURES):
        worker.call(works=False)
    return worker


def test_failures_in_a_row_take_it_out_and_an_answer_between_them_does_not() -> None:
    worker = Worker()
    for works in (False, False, True, False, False):
        worker.call(works=works)
    assert (worker.share(), worker.ejection.is_out) == (1.0, False)
    worker.call(works=False)
    assert (worker.share(), worker.ejection.is_out, worker.changes) == (0.0, True, 1)


def test_one_probe_at_a_time_and_each_that_fails_doubles_the_rest() -> None:
    worker, rest_s = ejected(), REST_S
    for _ in range(8):
        worker.now.s += rest_s * 0.99
        assert not worker.ejection.wants_probe
        worker.now.s += rest_s * 0.02
        assert worker.ejection.wants_probe
        probe, second = object(), object()
        worker.ejection.sent(probe)
        assert (worker.ejection.wants_probe, worker.share()) == (False, 0)
        worker.ejection.sent(second)
        worker.ejection.worked(second)  # an older call that comes back says nothing of now
        worker.ejection.over(second)
        assert worker.ejection.is_out
        worker.ejection.failed(probe)
        worker.ejection.over(probe)
        rest_s = min(2 * rest_s, LONGEST_REST_S)
    assert worker.changes == 1


def test_a_probe_that_ends_without_a_word_is_followed_by_another() -> None:
    worker = ejected()
    worker.now.s += REST_S
    probe = object()
    worker.ejection.sent(probe)
    worker.ejection.over(probe)  # its caller went away
    assert worker.ejection.wants_probe


def test_it_returns_slowly_and_one_failure_takes_it_out_again() -> None:
    worker = ejected()
    worker.now.s += REST_S
    worker.call(works=True)
    assert worker.changes == 2
    assert worker.share() == pytest.approx(0.1, abs=0.03)
    worker.now.s += RETURN_S / 2
    assert worker.share() == pytest.approx(0.5, abs=0.05)
    worker.call(works=False)
    assert worker.share() == 0
    worker.now.s += 2 * REST_S
    worker.call(works=True)
    worker.now.s += RETURN_S
    worker.call(works=True)
    worker.call(works=False)
    assert worker.share() == 1


def test_who_may_not_leave_stays() -> None:
    worker = Worker(may_leave=False)
    for _ in range(10):
        worker.call(works=False)
    assert worker.share() == 1
    worker.may_leave = True
    worker.call(works=False)
    assert worker.share() == 0


@pytest.mark.parametrize(
    ("error", "begun", "waited_s", "fault"),
    [
        (Failed("x"), True, 0.1, True),
        (WorkerLost("x"), False, 0.1, True),
        (Expired("x"), False, 3.0, True),
        (Expired("x"), False, 0.01, False),  # whoever sends tiny budgets
        (Expired("x"), True, 3.0, False),
        (Shed("x"), False, 3.0, False),
    ],
)
def test_what_speaks_against_a_worker(error: HeadwayError, begun: bool, waited_s: float, fault: bool) -> None:
    assert is_fault(error, begun=begun, waited_s=waited_s) is fault


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 3)), max_size=80))
def test_a_worker_that_works_again_is_always_taken_back(history: list[tuple[bool, float]]) -> None:
    worker = Worker()
    for works, wait_s in history:
        if worker.ejection.wants_probe or worker.ejection.takes(random.Random(0)):
            worker.call(works=works)
        worker.now.s += wait_s
    for _ in range(2):
        worker.now.s += LONGEST_REST_S + RETURN_S
        assert worker.ejection.wants_probe or worker.share() == 1
        worker.call(works=True)
    worker.now.s += RETURN_S
    assert worker.share() == 1


class Faulty(SumEngine):
    faulty = True

    def run(self, batch: Batch[Any]) -> list[int]:
        if self.faulty:
            raise RuntimeError("broken, though it reports")
        return super().run(batch)


async def generate(client: Any) -> bool:
    try:
        async for _ in client.images.Generate(images_request(3), timeout=10):
            pass
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.INTERNAL:
            raise
        return False
    return True


async def ejected_workers(client: Any) -> list[str]:
    return [entry.worker_id for entry in await client.workers() if entry.health == EJECTED]


async def test_a_faulty_worker_is_left_out_until_it_works(mesh: Any) -> None:
    engine = Faulty()
    faulty = await mesh.worker(name="faulty", engine=engine)
    client = await mesh.router(faulty, await mesh.worker(name="slow", step_ms=50))
    assert [await generate(client) for _ in range(FAILURES + 1)] == [False] * FAILURES + [True]
    assert await ejected_workers(client) == ["image-faulty"]
    gauge = mesh.router_service.metrics.registry.get_sample_value
    assert gauge("headway_workers", {"kind": "image", "state": "ejected"}) == 1
    engine.faulty = False
    while await ejected_workers(client):
        assert await generate(client)
    assert gauge("headway_workers", {"kind": "image", "state": "ejected"}) == 0


async def test_at_least_half_of_a_kind_stay(mesh: Any) -> None:
    workers = [await mesh.worker(name=str(index), engine=Faulty()) for index in range(3)]
    client = await mesh.router(*workers, placement="round-robin")
    for _ in range(FAILURES * 6):
        assert not await generate(client)
    assert len(await ejected_workers(client)) == 1
