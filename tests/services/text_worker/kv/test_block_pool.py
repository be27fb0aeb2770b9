"""Blocks are never lost, never given twice, and named ones are found again until their room is needed."""

import hashlib

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.text_worker.kv.pool import EVENTS_KEPT, BlockPool, OutOfBlocks

BLOCKS = 7


def name(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


class PoolMachine(RuleBasedStateMachine):
    """Plays sequences on a small pool beside the plainest model of it: who holds which blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS)
        self.holders: list[list[int]] = []
        self.named: dict[bytes, int] = {}
        self.seen_events = 0

    @rule(count=st.integers(0, BLOCKS + 1))
    def take(self, count: int) -> None:
        before = self.pool.available
        held = {block for blocks in self.holders for block in blocks}
        if count > before:
            with pytest.raises(OutOfBlocks):
                self.pool.take(count)
            assert self.pool.available == before
            return
        taken = self.pool.take(count)
        assert len(set(taken)) == count
        assert held.isdisjoint(taken)
        self.holders.append(taken)

    @precondition(lambda self: self.holders)
    @rule(which=st.integers(0, 99), hash_number=st.integers(0, 9))
    def store(self, which: int, hash_number: int) -> None:
        blocks = self.holders[which % len(self.holders)]
        owned = [block for block in blocks if self.pool.owned(block)]
        if owned:
            self.pool.store(owned[0], name(hash_number))
            self.named.setdefault(name(hash_number), owned[0])

    @rule(numbers=st.lists(st.integers(0, 9), max_size=4))
    def share(self, numbers: list[int]) -> None:
        found = self.pool.match([name(number) for number in numbers])
        assert list(found) == [self.named[name(number)] for number in numbers[: len(found)]]
        self.pool.hold(found)
        self.holders.append(list(found))

    @precondition(lambda self: self.holders)
    @rule(which=st.integers(0, 99))
    def release(self, which: int) -> None:
        self.pool.release(self.holders.pop(which % len(self.holders)))

    @invariant()
    def nothing_is_lost_or_held_twice_by_mistake(self) -> None:
        held = {block for blocks in self.holders for block in blocks}
        assert self.pool.available == BLOCKS - len(held)
        counts = [block for blocks in self.holders for block in blocks]
        assert self.pool.lone(held) == sum(counts.count(block) == 1 for block in held)
        assert self.pool.unheld(range(BLOCKS)) == BLOCKS - len(held)

    @invariant()
    def events_tell_what_is_here(self) -> None:
        for event in self.pool.events_after(self.seen_events) or ():
            assert event.number == self.seen_events + 1
            self.seen_events = event.number
            if not event.stored:
                del self.named[event.block_hash]
        assert set(self.named) == set(self.pool.stored_hashes())


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_what_is_not_held_cannot_be_released_and_nothing_changes() -> None:
    pool = BlockPool(3)
    first, second = pool.take(2)
    with pytest.raises(ValueError, match="not held 2 times"):
        pool.release([second, first, first])
    pool.release([first, second])
    with pytest.raises(ValueError, match="not held"):
        pool.release([first])
    with pytest.raises(ValueError, match="free"):
        pool.hold([first])
    assert pool.available == 3


def test_of_two_prompts_the_older_goes_first_and_its_end_before_its_beginning() -> None:
    pool = BlockPool(4)
    old, new = pool.take(2), pool.take(2)
    for number, block in enumerate([*old, *new]):
        pool.store(block, name(number))
    pool.release(old)
    pool.release(new)
    assert pool.take(1) == [old[1]]
    assert pool.match([name(0), name(1)]) == (old[0],)
    assert pool.take(2) == [old[0], new[1]]


def test_a_shared_or_named_block_is_not_written() -> None:
    pool = BlockPool(2)
    (block,) = pool.take(1)
    assert pool.owned(block)
    pool.hold([block])
    assert not pool.owned(block)
    pool.release([block])
    pool.store(block, name(0))
    assert not pool.owned(block)
    with pytest.raises(ValueError, match="another name"):
        pool.store(block, name(1))


def test_who_asks_too_late_for_events_is_sent_to_the_whole_list() -> None:
    pool = BlockPool(1)
    for number in range(EVENTS_KEPT):
        pool.release(pool.take(1))
        (block,) = pool.take(1)
        pool.store(block, name(number))
        pool.release([block])
    assert pool.last_event == 2 * EVENTS_KEPT - 1
    assert pool.events_after(0) is None
    assert pool.events_after(pool.last_event + 1) is None
    assert pool.events_after(pool.last_event) == ()
    assert [event.stored for event in pool.events_after(pool.last_event - 2) or ()] == [False, True]


def test_how_long_what_nobody_uses_is_kept_is_known_once_something_was_given_out() -> None:
    now_s = [10.0]
    pool = BlockPool(2, lambda: now_s[0])
    for number in range(2):
        pool.store(held := pool.take(1)[0], name(number))
        pool.release([held])
        now_s[0] += 3.0
    assert pool.kept_s is None
    (taken,) = pool.take(1)  # the first, which was let go at 10
    assert (now_s[0], pool.kept_s) == (16.0, 6.0)
    now_s[0] += 5.0
    assert pool.kept_s == 6.0
    now_s[0] += 5.0
    assert pool.kept_s == 10.0  # the other one has not been needed since
    pool.release([taken])
    pool.take(1)  # it holds nothing that could be used again
    assert pool.kept_s == 10.0
    pool.take(1)
    assert pool.kept_s == 13.0


def test_a_pool_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 block"):
        BlockPool(0)
