import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.device.wire import (
    MAX_BUCKETS,
    MAX_STEP_S,
    Busy,
    Declare,
    Demand,
    FrameReader,
    Grant,
    Message,
    Others,
    Ping,
    Pong,
    ProtocolError,
    Release,
    Request,
    Running,
    check_declared,
    check_end,
    encode,
)

times = st.floats(allow_nan=False, allow_infinity=False)
ids = st.integers(0, 2**32 - 1)
demands = st.lists(st.builds(Demand, times, st.floats(0, 1e9)), max_size=MAX_BUCKETS).map(tuple)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Request, ids, times, st.text("abcé", max_size=20)),
    st.builds(Release, ids),
    st.builds(Grant, ids),
    st.builds(Declare, demands),
    st.builds(Others, demands),
    st.just(Ping()),
    st.just(Pong()),
    st.builds(Running, ids, times),
    st.builds(Busy, st.none() | times),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(messages, max_size=6), st.integers(1, 40))
def test_messages_survive_any_cut_of_the_stream(sent: list[Message], cut: int) -> None:
    stream = b"".join(encode(message) for message in sent)
    reader = FrameReader()
    pieces = [stream[i : i + cut] for i in range(0, len(stream), cut)]
    assert [message for piece in pieces for message in reader.feed(piece)] == sent


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_refused_or_waits_for_more(garbage: bytes) -> None:
    reader = FrameReader()
    try:
        for message in reader.feed(garbage):
            assert encode(message)
    except ProtocolError:
        return
    assert len(reader._held) <= len(garbage)


def _frame(kind: int, payload: bytes) -> bytes:
    return struct.pack("!HB", len(payload), kind) + payload


@pytest.mark.parametrize(
    "frame",
    [
        _frame(7, b""),
        _frame(0, b"short"),
        _frame(0, struct.pack("!Id", 1, float("nan"))),
        _frame(0, struct.pack("!Id", 1, 1.0) + b"x" * 65),
        _frame(1, b""),
        _frame(2, b"x" * 15),
        _frame(2, struct.pack("!dd", 1.0, -1.0)),
        _frame(2, struct.pack("!dd", float("inf"), 1.0)),
        _frame(3, b"x"),
        _frame(7, struct.pack("!Id", 1, float("inf"))),
        _frame(8, b"x" * 7),
        _frame(8, struct.pack("!d", float("nan"))),
        _frame(9, b""),
        struct.pack("!HB", 0xFFFF, 2),
    ],
)
def test_a_bad_frame_is_refused(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(FrameReader().feed(frame))


def test_declared_demand_is_limited() -> None:
    item = Demand(1.0, 2.0)
    assert check_declared([item] * MAX_BUCKETS) == (item,) * MAX_BUCKETS
    with pytest.raises(ProtocolError, match="17 buckets of demand; at most 16"):
        check_declared([item] * (MAX_BUCKETS + 1))
    with pytest.raises(ProtocolError, match="negative"):
        check_declared([Demand(1.0, -1.0)])


@pytest.mark.parametrize("end_s", [float("inf"), float("nan"), 10.0 + MAX_STEP_S + 1])
def test_a_step_that_never_ends_is_refused(end_s: float) -> None:
    with pytest.raises(ProtocolError):
        check_end(end_s, 10.0)
    assert check_end(9.0, 10.0) == 9.0
