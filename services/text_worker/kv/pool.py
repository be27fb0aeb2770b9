"""Which KV blocks are free, held, shared or kept for reuse. Numbers and hashes, no tensors.

A block is free, or held by one or more sequences, or kept: held by nobody, but full and named by its hash, so that the
next prompt which begins alike takes it over. Kept blocks are given out again when nothing is free, least recently used
first, and of one prompt its end first.
"""

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from headway.deadline import Clock

EVENTS_KEPT = 4096


class OutOfBlocks(RuntimeError):
    """More blocks were asked for than can be given."""


@dataclass(frozen=True, slots=True)
class BlockEvent:
    """A named block came to be in this worker's cache, or went. `number` counts from 1 without gaps."""

    number: int
    stored: bool
    block_hash: bytes


class BlockPool:
    """A fixed number of blocks. Not thread-safe but for what only looks: `match`, `available`, `lone`, the events."""

    def __init__(self, blocks: int, clock: Clock = time.monotonic) -> None:
        """`clock` decides nothing here: see `kept_s`."""
        if blocks < 1:
            raise ValueError(f"a pool needs at least 1 block, not {blocks}")
        self.blocks = blocks
        self._free = list(range(blocks - 1, -1, -1))
        self._holders: dict[int, int] = {}
        self._clock = clock
        self._kept: OrderedDict[int, float] = OrderedDict()  # with since when
        self._given_out: tuple[float, float] | None = None  # when a kept block was last, and for how long it was kept
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._events: deque[BlockEvent] = deque(maxlen=EVENTS_KEPT)
        self._last_event = 0

    @property
    def available(self) -> int:
        """Blocks that `take` could give."""
        return len(self._free) + len(self._kept)

    @property
    def kept_s(self) -> float | None:
        """How long the last kept block that was given out had waited to be used again, or how long ago that is.

        The longer of the two: for about that long what nobody uses stays. None: all has stayed so far.
        """
        if (given_out := self._given_out) is None:
            return None
        at_s, kept_s = given_out
        return max(kept_s, self._clock() - at_s)

    def match(self, chain: Sequence[bytes]) -> tuple[int, ...]:
        """The blocks of the longest beginning of `chain` that is here. Holds nothing."""
        found = []
        for block_hash in chain:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            found.append(block)
        return tuple(found)

    def lone(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` have at most one holder: what releasing or holding them changes in `available`."""
        return sum(self._holders.get(block, 0) <= 1 for block in blocks)

    def unheld(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` nobody holds."""
        return sum(block not in self._holders for block in blocks)

    def hold(self, blocks: Sequence[int]) -> None:
        """One more holder for each, e.g. of what `match` found, or of another sequence's blocks.

        Raises ValueError for a block that is free, and changes nothing then.
        """
        for block in blocks:
            if block not in self._holders and block not in self._kept:
                raise ValueError(f"block {block} is free and holds nothing")
        for block in blocks:
            self._kept.pop(block, None)
            self._holders[block] = self._holders.get(block, 0) + 1

    def take(self, count: int) -> list[int]:
        """`count` blocks with one holder and no content. Raises `OutOfBlocks`, and takes none then."""
        if count > self.available:
            raise OutOfBlocks(f"{count} blocks are asked for and {self.available} of {self.blocks} can be given")
        taken = [self._free.pop() if self._free else self._forget_oldest() for _ in range(count)]
        self._holders.update(dict.fromkeys(taken, 1))
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """One holder fewer for each. Raises ValueError for one that is not held so often, and changes nothing then."""
        for block, times in Counter(blocks).items():
            if self._holders.get(block, 0) < times:
                raise ValueError(f"block {block} is not held {times} times")
        for block in reversed(blocks):  # a prompt's end is given out before its beginning
            self._holders[block] -= 1
            if not self._holders[block]:
                del self._holders[block]
                self._set_aside(block)

    def owned(self, block: int) -> bool:
        """Whether its one holder may write to it: it is neither shared nor named."""
        return self._holders.get(block) == 1 and block not in self._hash_of

    def store(self, block: int, block_hash: bytes) -> None:
        """Names a held block that is full and will not be written again; where another has the name, nothing changes.

        Raises ValueError for a block that is not held or has another name.
        """
        if block not in self._holders or self._hash_of.get(block, block_hash) != block_hash:
            raise ValueError(f"block {block} is not held, or has another name")
        if block_hash not in self._block_of:
            self._block_of[block_hash], self._hash_of[block] = block, block_hash
            self._tell(True, block_hash)

    # --- what the cache service is told

    @property
    def last_event(self) -> int:
        """Number of the newest event; 0 before the first."""
        return self._last_event

    def events_after(self, number: int) -> tuple[BlockEvent, ...] | None:
        """What happened after event `number`, oldest first; None when that is no longer known: use `stored_hashes`."""
        events = tuple(self._events)  # one step of the interpreter: another thread may look
        if number > self._last_event or (events and number < events[0].number - 1):
            return None
        return tuple(event for event in events if event.number > number)

    def stored_hashes(self) -> tuple[bytes, ...]:
        """The names of all blocks that are here now, as of `last_event`."""
        return tuple(self._block_of)

    def _tell(self, stored: bool, block_hash: bytes) -> None:
        self._last_event += 1
        self._events.append(BlockEvent(self._last_event, stored, block_hash))

    def _set_aside(self, block: int) -> None:
        if block in self._hash_of:
            self._kept[block] = self._clock()
        else:
            self._free.append(block)

    def _forget_oldest(self) -> int:
        block, since_s = self._kept.popitem(last=False)
        now_s = self._clock()
        self._given_out = now_s, now_s - since_s
        block_hash = self._hash_of.pop(block)
        del self._block_of[block_hash]
        self._tell(False, block_hash)
        return block
