"""Restores KV blocks of admitted prompts from the store, while the engine goes on with other sequences.

A sequence is admitted as if nothing were restored: the promise does not depend on the store. Then it waits for its
blocks, no longer than computing them would take, and than every promise leaves time for (`TextScheduler`). They are
checked in a thread, and the engine's thread takes them into its cache in its next step.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Several
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest

from headway.deadline import Clock
from headway.prefix import BLOCK_TOKENS, PayloadError
from headway.telemetry import Metrics, Restore, SharedBlock
from services.text_worker.costs import TextCosts
from services.text_worker.kv.coming import Coming
from services.text_worker.kv.pages import Numbers
from services.text_worker.kv.pool import BlockPool
from services.text_worker.kv.transfer import Layout
from services.text_worker.sharing.learned import RestoreCosts
from services.text_worker.sharing.stores import BlockStore, StoreError, blocks_a_message
from services.text_worker.sharing.watching import StoreWatch

log = logging.getLogger(__name__)

MOST_BLOCKS = 64
"""Of one prompt: 2,048 tokens."""
MOST_BYTES = 256 << 20
"""Under way at once."""


class Restorer:
    """Belongs to the event loop."""

    def __init__(
        self,
        store: BlockStore,
        watch: StoreWatch,
        costs: RestoreCosts,
        computing: TextCosts,
        pool: BlockPool,
        layout: Layout,
        *,
        clock: Clock,
        wake: Callable[[], None],
        metrics: Metrics,
    ) -> None:
        """`wake` is called when blocks have come, or none will. Raises ValueError for blocks over a message's limit."""
        group = blocks_a_message(layout.payload_bytes)
        if group is None:
            raise ValueError(f"a block of {layout.stored_bytes} bytes is over a message's limit")
        self._store, self._watch, self._costs, self._computing = store, watch, costs, computing
        self._pool, self._layout, self._group = pool, layout, group
        self._clock, self._wake, self._metrics = clock, wake, metrics
        self._under_way: dict[bytes, Coming] = {}
        self._tasks: dict[Coming, asyncio.Task[None]] = {}

    def attach(self, chain: Several[bytes]) -> Coming | None:
        """What is to be restored of a prompt with these blocks, once it is admitted; None: computing is quicker.

        `chain`: those of its full blocks behind which a token is left to run.
        """
        here = len(self._pool.match(chain))
        wanted = chain[here : here + self._room()]
        if not wanted or not self._watch.usable:
            return None
        if (under_way := self._under_way.get(wanted[0])) is not None:
            return under_way
        computing = self._computing.prefill_cost(len(wanted) * BLOCK_TOKENS)
        if not self._costs.worth_asking(len(wanted), computing):
            return None
        return Coming(wanted, self._clock() + computing.mean_ms / 1000)

    def begin(self, coming: Coming) -> None:
        """Fetches what was attached to a sequence that is admitted now, even if that leaves: others may want it."""
        if coming not in self._tasks and self._clock() < coming.until_s:
            self._under_way[coming.hashes[0]] = coming
            self._tasks[coming] = asyncio.create_task(self._restore(coming))

    async def close(self) -> None:
        """Ends what is under way."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _room(self) -> int:
        under_way = sum(len(coming.hashes) for coming in self._tasks)
        return max(0, min(MOST_BLOCKS, MOST_BYTES // self._layout.stored_bytes - under_way))

    async def _restore(self, coming: Coming) -> None:
        began_s = self._clock()
        try:
            async with asyncio.timeout(coming.until_s - began_s):
                result = await self._ask_and_fetch(coming)
        except TimeoutError:
            result = Restore.LATE
        except StoreError as error:
            self._watch.failed(error)
            result = Restore.FAILED
        finally:
            coming.end()
            del self._under_way[coming.hashes[0]], self._tasks[coming]
            self._wake()
        self._metrics.kv_restores.labels(result).inc()
        if result is Restore.RESTORED:
            self._metrics.kv_restore.observe(self._clock() - began_s)

    async def _ask_and_fetch(self, coming: Coming) -> Restore:
        with self._timed(self._costs.asked):
            present = await self._store.present(coming.hashes)
        count = next((place for place, there in enumerate(present) if not there), len(present))
        self._costs.found(count / len(present))
        if not count:
            return Restore.ABSENT
        if self._costs.saved_ms(count, self._computing.prefill_cost(count * BLOCK_TOKENS)) <= 0:
            return Restore.COSTLY
        coming.expect(coming.hashes[:count])
        with self._timed(partial(self._costs.fetched, count)):
            await self._fetch(coming, coming.hashes[:count])
        return Restore.RESTORED

    @contextmanager
    def _timed(self, told: Callable[[float], None]) -> Iterator[None]:
        """Tells the milliseconds; those of what was given up too, or slowness would not be learned."""
        began_s, failed = self._clock(), False
        try:
            yield
        except StoreError:
            failed = True
            raise
        finally:
            if not failed:
                told((self._clock() - began_s) * 1000)

    async def _fetch(self, coming: Coming, hashes: Several[bytes]) -> None:
        """A message's worth after the other; while one is checked the next is on its way."""
        groups = [hashes[first : first + self._group] for first in range(0, len(hashes), self._group)]
        ahead = asyncio.create_task(self._store.fetch(groups[0]))
        try:
            for group, following in zip_longest(groups, groups[1:]):
                fetched = await ahead
                if following is not None:
                    ahead = asyncio.create_task(self._store.fetch(following))
                if not await self._bring(coming, group, fetched):
                    return
        finally:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)

    async def _bring(self, coming: Coming, hashes: Several[bytes], fetched: Several[bytes]) -> bool:
        """Whether all of `hashes` came and is whole."""
        contents = await asyncio.to_thread(self._checked, hashes, fetched)
        for block, content in zip(hashes, contents, strict=False):
            coming.bring(block, content)
        self._metrics.kv_blocks.labels(SharedBlock.RESTORED).inc(len(contents))
        self._wake()
        if len(contents) < len(fetched):
            self._metrics.kv_blocks.labels(SharedBlock.DAMAGED).inc()
            await self._store.discard(hashes[len(contents)])
        return len(contents) == len(hashes)

    def _checked(self, hashes: Several[bytes], fetched: Several[bytes]) -> list[Numbers]:
        """The content of the blocks before the first that is not what it should be. Blocks; for another thread."""
        contents: list[Numbers] = []
        for block, stored in zip(hashes, fetched, strict=False):
            try:
                contents.append(self._layout.content(stored, block))
            except PayloadError as error:
                log.warning("a block in the store is not what was asked for: %s", error)
                break
        return contents
