import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.device.order import ClaimError, DemandBoard, LeaseQueue
from headway.device.wire import Demand

clients = st.integers(0, 5)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), clients, st.floats(0, 100)),
        st.tuples(st.just("end"), clients, st.booleans()),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(actions)
def test_one_holder_and_grants_by_deadline(script: list[tuple[str, int, float | bool]]) -> None:
    queue: LeaseQueue[int] = LeaseQueue()
    waiting: dict[int, tuple[float, int]] = {}
    holder: int | None = None
    for turn, (action, client, value) in enumerate(script):
        if action == "ask" and (client in waiting or client == holder):
            with pytest.raises(ClaimError):
                queue.ask(client, turn, 0.0, "")
        elif action == "ask":
            queue.ask(client, turn, float(value), "")
            waiting[client] = (float(value), turn)
        else:
            queue.end(client)
            waiting.pop(client, None)
            holder = None if client == holder else holder
        granted = queue.grant()
        if holder is None and waiting:
            holder = min(waiting, key=lambda who: waiting[who])
            assert granted is not None
            assert (granted.client, granted.lease_id) == (holder, waiting.pop(holder)[1])
        else:
            assert granted is None
        assert (queue.holder.client if queue.holder else None) == holder
        assert queue.waiting == len(waiting)


def test_a_release_of_another_lease_is_ignored() -> None:
    queue: LeaseQueue[str] = LeaseQueue()
    queue.ask("a", 7, 1.0, "")
    held = queue.grant()
    queue.end("a", 6)
    assert queue.holder is held
    queue.end("a", 7)
    assert queue.holder is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(clients, st.lists(st.floats(0, 9), max_size=3)), max_size=20))
def test_each_client_sees_the_last_word_of_all_others(script: list[tuple[int, list[float]]]) -> None:
    board: DemandBoard[int] = DemandBoard()
    last: dict[int, tuple[Demand, ...]] = {}
    for client, deadlines in script:
        demand = tuple(Demand(deadline, 1.0) for deadline in deadlines)
        assert board.declare(client, demand) == (last.get(client, ()) != demand)
        last[client] = demand
    for client in range(6):
        expected = [item for other, demand in last.items() if other != client for item in demand]
        assert sorted(board.others(client)) == sorted(expected)


def test_all_but_the_holder_know_when_its_step_should_end_until_the_lease_ends() -> None:
    queue: LeaseQueue[str] = LeaseQueue()
    queue.ask("a", 1, 1.0, "")
    assert not queue.running("a", 1, 5.0), "it waits yet"
    queue.grant()
    assert queue.busy_until_s("b") is None, "it has not begun"
    assert not queue.running("a", 2, 5.0)
    assert not queue.running("b", 1, 5.0)
    assert queue.running("a", 1, 5.0)
    assert (queue.busy_until_s("a"), queue.busy_until_s("b")) == (None, 5.0)
    queue.end("a")
    assert queue.busy_until_s("b") is None
