"""Which workers hold how much of a prompt, from what they report through the prefix cache (DESIGN, decision 10).

A look-up hashes a prompt's chunks one by one and stops at the first that nobody holds, so it costs what is shared and
one chunk more, whatever the number of workers and prompts. Pure; belongs to one event loop.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from headway.lease import Secrets, first_of
from headway.prefix import CHUNK_BYTES, HASH_BYTES
from headway.prompts import prompt_chunks
from headway.v1 import prefix_cache_pb2

MOST_HOLDERS = 4
"""Workers that are weighed for a request because they hold the most of its prompt, beside those drawn."""
MOST_WORKERS = 4096
MOST_CHUNKS = 131_072
"""Of one worker; what it reports beyond that is not taken in."""

_Holders = dict[str, int]
"""By worker the number of its blocks that a chunk stands for."""


@dataclass(frozen=True, slots=True)
class Shared:
    """How much of one prompt is cached where."""

    holders: Sequence[_Holders] = ()
    """For each leading chunk, until the first that nobody holds."""

    @property
    def longest(self) -> list[str]:
        """A few workers that hold the most."""
        return list(islice(self.holders[-1], MOST_HOLDERS)) if self.holders else []

    def held_bytes(self, worker_id: str) -> int:
        """Leading bytes of the prompt that a worker holds. A worker lets go of a prompt's end before its beginning."""
        low, high = 0, len(self.holders)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if worker_id in self.holders[middle - 1] else (low, middle - 1)
        return low * CHUNK_BYTES


NOTHING_SHARED = Shared()


@dataclass(slots=True)
class _Worker:
    """What one worker holds."""

    blocks: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    """The chunks of each block."""
    chunks: int = 0


class PrefixIndex:
    """The prefixes of all workers."""

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}
        self._holders: dict[bytes, _Holders] = {}
        self._blocks = 0

    def take(self, report: prefix_cache_pb2.PublishRequest) -> None:
        """Takes a worker's report in. Events that are not well formed count as removals. Mutates the index."""
        if report.snapshot:
            self._forget(report.worker_id)
        if not report.events or (report.worker_id not in self._workers and len(self._workers) >= MOST_WORKERS):
            return
        worker = self._workers.setdefault(report.worker_id, _Worker())
        for event in report.events:
            self._remove(report.worker_id, worker, event.token_chain)
            if not event.removed:
                self._store(report.worker_id, worker, event)
        if not worker.blocks:
            del self._workers[report.worker_id]

    def clear(self) -> None:
        """Forgets all: what is known is no longer kept up to date. Mutates the index."""
        self._workers.clear()
        self._holders.clear()
        self._blocks = 0

    def shared(self, links: Iterable[bytes]) -> Shared:
        """Who holds how much of the prompt with these chunks, which are looked at until nobody holds one."""
        if not self._holders:
            return NOTHING_SHARED
        found = []
        for link in links:
            holders = self._holders.get(link)
            if holders is None:
                break
            found.append(holders)
        return Shared(found)

    @property
    def blocks(self) -> int:
        """The number of blocks of all workers together."""
        return self._blocks

    @property
    def sizes(self) -> Mapping[str, int]:
        """The number of blocks of each worker that holds any."""
        return {worker_id: len(worker.blocks) for worker_id, worker in self._workers.items()}

    def _store(self, worker_id: str, worker: _Worker, event: prefix_cache_pb2.PrefixEvent) -> None:
        chunks = tuple(link for link in event.chunk_chain if len(link) == HASH_BYTES)
        if not chunks or worker.chunks + len(chunks) > MOST_CHUNKS:
            return
        worker.blocks[event.token_chain] = chunks
        self._blocks += 1
        worker.chunks += len(chunks)
        for link in chunks:
            holders = self._holders.setdefault(link, {})
            holders[worker_id] = holders.get(worker_id, 0) + 1

    def _remove(self, worker_id: str, worker: _Worker, block: bytes) -> None:
        chunks = worker.blocks.pop(block, ())
        self._blocks -= bool(chunks)
        worker.chunks -= len(chunks)
        for link in chunks:
            holders = self._holders[link]
            holders[worker_id] -= 1
            if not holders[worker_id]:
                del holders[worker_id]
            if not holders:
                del self._holders[link]

    def _forget(self, worker_id: str) -> None:
        worker = self._workers.pop(worker_id, None)
        if worker is not None:
            for block in list(worker.blocks):
                self._remove(worker_id, worker, block)


class KnownPrompts:
    """Looks prompts up as workers report them."""

    def __init__(self, index: PrefixIndex, secrets: Secrets | None) -> None:
        """`secrets` are what routers and workers share, where they do: see `headway.prompts`."""
        self._index, self._secrets = index, secrets

    def shared(self, prompt: bytes, asset_hash: str | None, tenant: str) -> Shared:
        """Who holds how much of a canonical prompt."""
        if asset_hash is None or len(prompt) < CHUNK_BYTES:
            return NOTHING_SHARED
        secret = first_of(self._secrets)
        return self._index.shared(prompt_chunks(prompt, asset_hash=asset_hash, secret=secret, tenant=tenant))
