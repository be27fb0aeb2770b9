"""Blocks and their memory together: what a sequence holds, and how it comes to hold it and lets it go."""

import time
from collections.abc import Sequence as Several
from dataclasses import dataclass, field

from headway.deadline import Clock
from headway.prefix import BLOCK_TOKENS
from services.text_worker.backend import Blocks
from services.text_worker.kv.chain import Chain
from services.text_worker.kv.pool import BlockPool


@dataclass(slots=True, eq=False)
class Holding:
    """One sequence's part of the cache."""

    chain: Chain = field(default_factory=Chain.private)
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    """Tokens whose keys and values are in `blocks`, from the first on."""
    named: int = 0
    """Leading blocks that were offered to others by their hash."""


def blocks_of(tokens: int) -> int:
    """Blocks that so many tokens need."""
    return -(-tokens // BLOCK_TOKENS)


class KvStore:
    """Belongs to the engine's thread. Whoever plans a step sees to it that the blocks are there."""

    def __init__(self, pages: Blocks, clock: Clock = time.monotonic) -> None:
        """The last block of `pages` stays outside the pool: what is only measured is written there."""
        self.pages, self.pool = pages, BlockPool(pages.blocks - 1, clock)

    def adopt(self, holding: Holding, blocks: Several[int], computed: int) -> None:
        """Begins an empty holding with blocks that are there already, of which `computed` tokens are used."""
        self.pool.hold(blocks)
        holding.computed, holding.named = computed, len(blocks)
        holding.blocks = list(blocks)

    def reserve(self, holding: Holding, tokens: int) -> None:
        """Makes room for `tokens` tokens in all, and the holding's own what of it will be written.

        Raises OutOfBlocks.
        """
        written_first = holding.computed // BLOCK_TOKENS
        if written_first < len(holding.blocks) and not self.pool.owned(holding.blocks[written_first]):
            self._copy_on_write(holding, written_first)
        missing = blocks_of(tokens) - len(holding.blocks)
        if missing > 0:
            holding.blocks += self.pool.take(missing)

    def computed(self, holding: Holding, tokens: Several[int], count: int) -> None:
        """`count` more tokens are cached; what became full is offered to prompts that begin alike.

        tokens: the sequence's, at least as many as are computed now.
        """
        holding.computed += count
        full = holding.computed // BLOCK_TOKENS
        if full > holding.named:
            hashes = holding.chain.over(tokens)
            for place in range(holding.named, full):
                self.pool.store(holding.blocks[place], hashes[place])
            holding.named = full

    def trim(self, holding: Holding) -> None:
        """Gives back the blocks in which nothing is cached: those of drafts that were refused."""
        kept = blocks_of(holding.computed)
        spare, holding.blocks = holding.blocks[kept:], holding.blocks[:kept]
        self.pool.release(spare)

    def release(self, holding: Holding) -> None:
        """Gives all blocks back; the holding is empty then."""
        blocks, holding.blocks, holding.computed, holding.named = holding.blocks, [], 0, 0
        self.pool.release(blocks)

    def _copy_on_write(self, holding: Holding, place: int) -> None:
        shared = holding.blocks[place]
        (own,) = self.pool.take(1)
        self.pages.copy(shared, own)
        self.pool.release([shared])
        holding.blocks[place], holding.named = own, min(holding.named, place)
