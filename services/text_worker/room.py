"""Whether the KV cache has room for what a step would run, and who must leave for it. Pure: it only looks."""

from collections.abc import Sequence as Several

from headway.prefix import BLOCK_TOKENS
from services.text_worker.kv.pool import BlockPool
from services.text_worker.kv.store import blocks_of
from services.text_worker.sequence import Sequence


class Room:
    """The blocks of one step while it is planned, most urgent sequences first."""

    def __init__(self, pool: BlockPool, works: Several[Sequence]) -> None:
        """`works` come most urgent first; the least urgent that hold blocks leave when earlier ones need them."""
        self._pool, self._free = pool, pool.available
        self._works = works
        self._holders = [work for work in works if work.kv.blocks]
        self._adopted: set[int] = set()
        self._leaving: set[int] = set()
        self.evicted: list[Sequence] = []

    def holds_next(self, work: Sequence) -> bool:
        """Whether the next token is written into a block that is the sequence's own: there is room, none is taken."""
        place, blocks = work.kv.computed // BLOCK_TOKENS, work.kv.blocks
        return place < len(blocks) and self._pool.owned(blocks[place])

    def fit(self, work: Sequence, start: int, count: int, adopted: tuple[int, ...], spare: int) -> int:
        """How many of `count` tokens from `start` on have room, when less urgent sequences leave where need be.

        `adopted`: blocks that the sequence begins with. `spare`: blocks that must stay over, so that who begins now
        does not stop those who run.
        """
        held = len(work.kv.blocks) + len(adopted)
        while True:
            free = self._free - spare - self._kept(adopted) - self._copies(work, start, adopted)
            most = count if blocks_of(start + count) <= held else (held + free) * BLOCK_TOKENS - start
            if free >= 0 and most >= count:
                return count
            if not self._evict_for(work):
                return max(0, most) if free >= 0 else 0

    def claim(self, work: Sequence, start: int, count: int, adopted: tuple[int, ...]) -> None:
        """Takes the room that `fit` found. Whoever has claimed does not leave in this step."""
        held = len(work.kv.blocks) + len(adopted)
        taken = max(0, blocks_of(start + count) - held)
        self._free -= taken + self._kept(adopted) + self._copies(work, start, adopted)
        self._adopted.update(adopted)

    def extend(self, end: int, most: int) -> int:
        """Takes room for up to `most` tokens behind `end`, up to which it was claimed; nobody leaves for them."""
        blocks = blocks_of(end)
        count = min(most, (blocks + max(0, self._free)) * BLOCK_TOKENS - end)
        self._free -= blocks_of(end + count) - blocks
        return count

    def _kept(self, adopted: tuple[int, ...]) -> int:
        """How many blocks fewer can be given out once these are held."""
        if not adopted:  # nearly always
            return 0
        new = [block for block in adopted if block not in self._adopted]
        return self._pool.unheld(new) + sum(block in self._leaving for block in new)

    def _copies(self, work: Sequence, start: int, adopted: tuple[int, ...]) -> int:
        """1 where the first token is written into a block that is not the sequence's own to write."""
        place = start // BLOCK_TOKENS
        if adopted:
            return int(place < len(adopted))
        return int(place < len(work.kv.blocks) and not self._pool.owned(work.kv.blocks[place]))

    def _evict_for(self, work: Sequence) -> bool:
        """The least urgent holder leaves, unless it is `work` or one before it."""
        if not self._holders or self._works.index(self._holders[-1]) <= self._works.index(work):
            return False
        victim = self._holders.pop()
        freed = {block for block in victim.kv.blocks if block not in self._adopted and self._pool.lone([block])}
        self._free += len(freed)
        self._leaving |= freed
        self.evicted.append(victim)
        return True
