"""Entries as bytes: what was packed comes back, and nothing else does."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.v1 import prefix_cache_pb2
from services.prefix_cache.entry import DamagedEntry, pack, quality_text, unpack

KEY = bytes(range(32))
results = st.builds(
    prefix_cache_pb2.StoredResult,
    messages=st.lists(st.binary(max_size=64), max_size=4),
    quality=st.floats(0, 1),
)


@settings(max_examples=50, deadline=None)
@given(results)
def test_what_was_packed_comes_back(result: prefix_cache_pb2.StoredResult) -> None:
    assert unpack(pack(KEY, result), KEY, quality_text(result.quality)) == result


@settings(max_examples=100, deadline=None)
@given(results, st.data())
def test_every_flipped_bit_is_noticed(result: prefix_cache_pb2.StoredResult, data: st.DataObject) -> None:
    stored = bytearray(pack(KEY, result))
    stored[data.draw(st.integers(0, len(stored) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(DamagedEntry):
        unpack(bytes(stored), KEY, quality_text(result.quality))


@settings(max_examples=50, deadline=None)
@given(results, st.data())
def test_a_cut_off_entry_is_noticed(result: prefix_cache_pb2.StoredResult, data: st.DataObject) -> None:
    stored = pack(KEY, result)
    with pytest.raises(DamagedEntry):
        unpack(stored[: data.draw(st.integers(0, len(stored) - 1))], KEY, quality_text(result.quality))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_noticed(garbage: bytes) -> None:
    with pytest.raises(DamagedEntry):
        unpack(garbage, KEY, b"1.0")


def test_an_entry_of_another_key_or_quality_is_noticed() -> None:
    stored = pack(KEY, prefix_cache_pb2.StoredResult(messages=[b"a"], quality=0.5))
    with pytest.raises(DamagedEntry, match="another key"):
        unpack(stored, bytes(32), b"0.5")
    with pytest.raises(DamagedEntry, match="quality"):
        unpack(stored, KEY, b"1.0")
