"""Whether the store can be used, and how quick it is: looked at now and then, whatever is asked of it meanwhile."""

import asyncio
import logging
from typing import Protocol

import numpy as np

from headway.deadline import Clock
from headway.prefix import BLOCK_TOKENS, PayloadError, pack_header, token_chain
from services.text_worker.kv.transfer import Layout
from services.text_worker.sharing.learned import RestoreCosts
from services.text_worker.sharing.stores import BlockStore, StoreError

log = logging.getLogger(__name__)

FIRST_S, LAST_S = 0.05, 5.0
"""Pauses between two looks: from the first, doubled while it answers, up to the last."""
REST_S = 1.0
_PATIENCE_S = 1.0


class ReachableGauge(Protocol):
    """Is told whether the store answers: 1 or 0."""

    def set(self, value: float) -> None: ...


class StoreWatch:
    """Keeps a block of zeros in the store and fetches it again and again. Belongs to the event loop.

    So the costs are known before the first prompt, and a store that was slow or gone is used again once it is not.
    """

    def __init__(
        self,
        store: BlockStore,
        layout: Layout,
        costs: RestoreCosts,
        ttl_s: float,
        *,
        clock: Clock,
        gauge: ReachableGauge,
    ) -> None:
        self._store, self._layout, self._costs, self._ttl_s = store, layout, costs, ttl_s
        self._clock, self._gauge = clock, gauge
        self._answers: bool | None = None
        (self._name,) = token_chain([0] * BLOCK_TOKENS, salt="headway sample", fingerprint=layout.fingerprint)

    @property
    def usable(self) -> bool:
        """It answered lately, and what it costs is known."""
        return self._answers is True and self._costs.known

    def failed(self, error: Exception) -> None:
        """Something else saw that it cannot be used: until the next look it is left alone."""
        if self._answers is not False:
            log.warning("KV blocks are not shared: %s", error or type(error).__name__)
        self._answers = False
        self._gauge.set(0)

    async def run(self) -> None:
        """Looks again and again, until cancelled."""
        pause_s = FIRST_S
        while True:
            answered = await self.look()
            pause_s = min(LAST_S, 2 * pause_s) if answered else FIRST_S
            await asyncio.sleep(pause_s if answered else REST_S)

    async def look(self) -> bool:
        """One round trip, and one block. Returns whether it answered."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._look()
        except (StoreError, TimeoutError) as error:
            self.failed(error)
            return False
        if self._answers is False:
            log.info("KV blocks are shared again")
        self._answers = True
        self._gauge.set(1)
        return True

    async def _look(self) -> None:
        if not self._answers:
            await self._store.present([self._name])  # connects
        began_s = self._clock()
        (there,) = await self._store.present([self._name])
        self._costs.asked((self._clock() - began_s) * 1000)
        if there or await self._put():
            began_s = self._clock()
            await self._fetch()
            self._costs.fetched(1, (self._clock() - began_s) * 1000)

    async def _put(self) -> bool:
        """A store that is full may still be read."""
        zeros = np.zeros(self._layout.payload_bytes, np.uint8).data
        stored = b"".join((pack_header(self._layout.header(self._name), zeros), zeros))
        try:
            await self._store.store([(self._name, stored)], self._ttl_s)
        except StoreError as error:
            log.debug("the store takes no block: %s", error)
            return False
        return True

    async def _fetch(self) -> None:
        for stored in await self._store.fetch([self._name]):
            try:
                await asyncio.to_thread(self._layout.content, stored, self._name)
            except PayloadError as error:
                log.warning("a block in the store is damaged: %s", error)
                await self._store.discard(self._name)
