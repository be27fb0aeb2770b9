"""What trailers say of an answer, whatever the worker's names hold."""

from hypothesis import given, settings
from hypothesis import strategies as st

from headway import answer_trailers
from headway.v1 import common_pb2


@settings(max_examples=50, deadline=None)
@given(label=st.text(max_size=20), worker=st.text(max_size=20), slack_ms=st.floats(-1e9, 1e9))
def test_trailers_are_printable_ascii(label: str, worker: str, slack_ms: float) -> None:
    served = common_pb2.Served(rung=common_pb2.Rung(label=label), worker_id=worker, slack_ms=slack_ms)
    told = dict(answer_trailers.trailers_of(served))
    assert all(value.isascii() and value.isprintable() for value in told.values())
    assert abs(float(told["headway-slack-ms"]) - slack_ms) <= 0.051


def test_what_is_told_outside_a_call_goes_nowhere() -> None:
    answer_trailers.tell(common_pb2.Served())
