"""Slots are given out once each and come back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.text_worker.model.cache import KvCache
from services.text_worker.model.families import parse_architecture

ARCHITECTURE = parse_architecture(
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 16,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    }
)


@given(st.lists(st.integers(0, 4) | st.none(), max_size=40))
@settings(max_examples=60, deadline=None)
def test_a_slot_has_one_holder_at_a_time(moves: list[int | None]) -> None:
    """None takes a slot; a number gives that holder's back."""
    cache, held = KvCache(ARCHITECTURE, slots=4, context=8), list[int]()
    for move in moves:
        if move is None:
            slot = cache.acquire()
            assert (slot is None) == (len(held) == 4)
            held += [] if slot is None else [slot]
        elif move < len(held):
            cache.release(held.pop(move))
        assert len(set(held)) == len(held) == 4 - cache.free_slots


def test_the_size_is_what_its_shape_says() -> None:
    assert KvCache(ARCHITECTURE, slots=3, context=8).size_bytes == 2 * 2 * 3 * 2 * 8 * 4 * 4


@pytest.mark.parametrize(("slots", "context"), [(0, 8), (1, 0), (1, 33)])
def test_sizes_out_of_range_are_refused(slots: int, context: int) -> None:
    with pytest.raises(ValueError, match="from 1 to 32"):
        KvCache(ARCHITECTURE, slots=slots, context=context)


@pytest.mark.parametrize("slot", [0, -1, 2])
def test_a_slot_that_is_not_taken_cannot_come_back(slot: int) -> None:
    cache = KvCache(ARCHITECTURE, slots=2, context=8)
    assert cache.acquire() == 0
    cache.release(0)
    with pytest.raises(ValueError, match="not taken"):
        cache.release(slot)
