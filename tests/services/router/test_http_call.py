"""gRPC as a proxy sees it: what is read of headers, bodies and trailers, and that nothing is believed."""

import gzip
import zlib

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.errors import BadInput, HeadwayError, Shed, Unimplemented, to_status, to_trailers
from headway.v1 import errors_pb2
from services.router.http_call import Ended, Timeout, first_message, to_wire, write_timeout


def framed(message: bytes, packed: int = 0) -> bytes:
    return bytes([packed]) + len(message).to_bytes(4, "big") + message


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("0S", 0), ("250m", 0.25), ("2H", 7200), ("3M", 180), ("99999999n", 0.099999999), ("5u", 5e-6)],
)
def test_a_timeout_is_read_in_its_unit(header: str | None, seconds: float | None) -> None:
    assert Timeout.read(header).time_remaining() == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("header", ["", "S", "1", "123456789S", "-1S", "1.5S", "1s", "1S ", "\u0661S"])
def test_a_timeout_that_is_none_is_bad_input(header: str) -> None:
    with pytest.raises(BadInput, match="grpc-timeout"):
        Timeout.read(header)


@settings(max_examples=100, deadline=None)
@given(st.floats(0.002, 1e7))
def test_a_timeout_that_is_written_gives_no_more_than_is_left(left_s: float) -> None:
    said = Timeout.read(write_timeout(left_s)).seconds
    assert said is not None and left_s - 1.0 < said <= left_s + 1e-9


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=50), st.binary(max_size=20), st.integers(0, 60))
def test_a_message_is_found_as_soon_as_it_is_whole(message: bytes, more: bytes, cut: int) -> None:
    body = framed(message) + more
    found = first_message(body[:cut], None, 100)
    assert found == (message if cut >= 5 + len(message) else None)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_packed_message_is_unpacked_and_no_further_than_the_limit(encoding: str, pack: object) -> None:
    assert callable(pack)
    assert first_message(framed(pack(b"x" * 100), 1), encoding, 100) == b"x" * 100
    with pytest.raises(BadInput, match="more than 100000 bytes"):
        first_message(framed(pack(b"x" * 10_000_000), 1), encoding, 100_000)
    with pytest.raises(BadInput, match="cut"):
        first_message(framed(pack(b"x" * 100)[:-6], 1), encoding, 100)
    with pytest.raises(BadInput, match=encoding):
        first_message(framed(b"no such thing", 1), encoding, 100)


def test_what_is_no_message_is_bad_input() -> None:
    with pytest.raises(BadInput, match="not a gRPC message"):
        first_message(b"GET / HTTP/1.1", None, 100)
    with pytest.raises(BadInput, match="4294967295 bytes; at most 100"):
        first_message(b"\0\xff\xff\xff\xff", None, 100)
    with pytest.raises(Unimplemented, match="snappy"):
        first_message(framed(b"x", 1), "snappy", 100)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40), st.sampled_from([None, "gzip", "deflate", "identity", "br"]))
def test_no_body_does_more_than_raise(body: bytes, encoding: str | None) -> None:
    try:
        found = first_message(body, encoding, 1000)
    except HeadwayError:
        return
    assert found is None or len(found) <= 1000


def test_trailers_carry_an_error_as_it_was() -> None:
    shed = Shed("full; 100 % of it", retry_after_s=1.5)
    sent = [("grpc-status", "8"), ("grpc-message", "full; 100 %25 of it")]
    sent += [(name, value.decode()) for name, value in to_wire(to_trailers(shed))]
    ended = Ended.read(sent)
    assert ended is not None
    error = ended.error()
    assert error is not None
    assert (error.reason, error.status) == (errors_pb2.ERROR_REASON_SHED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert (error.message, error.retry_after_s) == ("full; 100 % of it", 1.5)
    assert to_status(error).code == 8


def test_an_end_without_details_has_the_nearest_reason() -> None:
    assert Ended.read([("x", "y")]) is None
    done = Ended.read([("grpc-status", "0")])
    assert done is not None and done.error() is None
    lost = Ended.read([("grpc-status", "14"), ("grpc-status-details-bin", "not base64!")])
    assert lost is not None
    error = lost.error()
    assert error is not None and error.reason == errors_pb2.ERROR_REASON_WORKER_LOST
    odd = Ended.read([("grpc-status", "99")])
    assert odd is not None and odd.status is grpc.StatusCode.UNKNOWN
