"""Writes KV blocks to the store, behind what the worker serves.

Only what is likely to be asked for again is written: blocks of prompts, not of answers, that were asked for as often
as the settings say, for which restoring would beat computing, and that are not in the store already. Their content is
copied outside the engine's thread, when their turn comes; at most so many bytes a second leave.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence as Several
from dataclasses import dataclass

from headway.deadline import Clock
from headway.prefix import BLOCK_TOKENS
from headway.telemetry import Metrics, SharedBlock
from services.text_worker.costs import TextCosts
from services.text_worker.kv.pages import Pages
from services.text_worker.kv.store import KvStore
from services.text_worker.kv.transfer import Layout, export_named
from services.text_worker.sharing.learned import RestoreCosts
from services.text_worker.sharing.stores import BlockStore, StoreError, blocks_a_message
from services.text_worker.sharing.watching import StoreWatch

log = logging.getLogger(__name__)

MOST_QUEUED = 4096
MOST_REMEMBERED = 65_536
_PATIENCE_S = 2.0
_REST_S = 1.0


@dataclass(slots=True)
class _Seen:
    """One block."""

    times: int = 0
    stored_s: float | None = None
    """When it was last known to be in the store."""
    queued: bool = False


@dataclass(frozen=True, slots=True)
class WritePolicy:
    """What is written, and how much of it."""

    sightings: int
    bytes_per_s: float
    ttl_s: float


class BlockWriter:
    """Belongs to the event loop."""

    def __init__(
        self,
        store: BlockStore,
        watch: StoreWatch,
        costs: RestoreCosts,
        computing: TextCosts,
        cache: KvStore,
        layout: Layout,
        policy: WritePolicy,
        *,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._store, self._watch, self._costs, self._computing = store, watch, costs, computing
        self._cache, self._layout, self._policy = cache, layout, policy
        self._clock, self._metrics = clock, metrics
        self._seen: OrderedDict[bytes, _Seen] = OrderedDict()
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(MOST_QUEUED)
        self._group = blocks_a_message(layout.payload_bytes) or 1

    def saw(self, chain: Several[bytes]) -> None:
        """A prompt with these full blocks was served. Mutates; does not wait."""
        computing = self._computing.prefill_cost(len(chain) * BLOCK_TOKENS)
        worth = bool(chain) and self._watch.usable and self._costs.worth_writing(len(chain), computing)
        for block in chain:
            seen = self._remembered(block)
            seen.times += 1
            if worth and seen.times >= self._policy.sightings and not seen.queued and not self._known(seen):
                self._enqueue(block, seen)

    async def run(self) -> None:
        """Writes what is queued, until cancelled."""
        while True:
            group = [await self._queue.get()]
            while len(group) < self._group and not self._queue.empty():
                group.append(self._queue.get_nowait())
            await asyncio.sleep(await self._written(group))

    def _remembered(self, block: bytes) -> _Seen:
        seen = self._seen.setdefault(block, _Seen())
        self._seen.move_to_end(block)
        while len(self._seen) > MOST_REMEMBERED:
            self._seen.popitem(last=False)
        return seen

    def _known(self, seen: _Seen) -> bool:
        """Whether it is there for certain: later it may have lapsed."""
        return seen.stored_s is not None and self._clock() - seen.stored_s < self._policy.ttl_s / 2

    def _enqueue(self, block: bytes, seen: _Seen) -> None:
        if self._queue.full():
            self._count(SharedBlock.DROPPED, 1)
        else:
            self._queue.put_nowait(block)
            seen.queued = True

    async def _written(self, group: Several[bytes]) -> float:
        """Writes what of the group is missing; for how long to pause then, in seconds."""
        began_s = self._clock()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                sent_bytes = await self._write(group)
        except (StoreError, TimeoutError) as error:
            log.debug("blocks were not written: %s", error)
            self._count(SharedBlock.DROPPED, len(group))
            return _REST_S
        finally:
            for block in group:
                self._remembered(block).queued = False
        return max(0.0, sent_bytes / self._policy.bytes_per_s - (self._clock() - began_s))

    async def _write(self, group: Several[bytes]) -> int:
        present = await self._store.present(group)
        missing = [block for block, there in zip(group, present, strict=True) if not there]
        exported = await asyncio.to_thread(self._exported, missing)
        blocks = [(block, stored) for block, stored in zip(missing, exported, strict=True) if stored is not None]
        if blocks:
            await self._store.store(blocks, self._policy.ttl_s)
        self._count(SharedBlock.WRITTEN, len(blocks))
        self._count(SharedBlock.GONE, len(missing) - len(blocks))
        gone = set(missing) - {block for block, _ in blocks}
        for block in group:
            if block not in gone:
                self._remembered(block).stored_s = self._clock()
        return sum(len(stored) for _, stored in blocks)

    def _exported(self, blocks: Several[bytes]) -> list[bytes | None]:
        """Blocks; for another thread."""
        pages = self._cache.pages
        assert isinstance(pages, Pages)
        fingerprint = self._layout.fingerprint
        return [export_named(self._cache, pages, block, fingerprint=fingerprint) for block in blocks]

    def _count(self, result: SharedBlock, blocks: int) -> None:
        self._metrics.kv_blocks.labels(result).inc(blocks)
