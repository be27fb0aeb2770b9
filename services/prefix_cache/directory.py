"""Which worker holds which prefixes: soft state, made of the workers' own reports, told to every router that watches.

A worker numbers its reports. One that is missing makes the next ones useless, so a snapshot is asked for. What a worker
said lapses with its lease. Pure but for the queues of those who watch: the clock is given.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from headway.deadline import Clock
from headway.errors import BadInput, Failed
from headway.prefix import HASH_BYTES
from headway.v1 import prefix_cache_pb2

MOST_EVENTS = 1024
MOST_CHUNKS = 1024
MOST_WORKERS = 4096
MOST_PREFIXES = 65_536
"""Of one worker."""
_MOST_WAITING = 4096
MOST_LEASE_S = 600.0


@dataclass(slots=True)
class _Holder:
    """One worker, as of its last report."""

    sequence: int
    until_s: float
    prefixes: dict[bytes, prefix_cache_pb2.PrefixEvent] = field(default_factory=dict)


class Watcher:
    """What one watcher is still to be told. It is cut off when it does not keep up: then it begins anew."""

    def __init__(self, reports: list[prefix_cache_pb2.PublishRequest]) -> None:
        self._queue: asyncio.Queue[prefix_cache_pb2.PublishRequest] = asyncio.Queue()
        self.behind = False
        for report in reports:
            self._queue.put_nowait(report)

    def tell(self, report: prefix_cache_pb2.PublishRequest) -> None:
        if self._queue.qsize() >= _MOST_WAITING:
            self.behind = True
        else:
            self._queue.put_nowait(report)

    async def next(self) -> prefix_cache_pb2.PublishRequest:
        """The next report. Raises `Failed` when it has missed one."""
        if self.behind:
            raise Failed(f"more than {_MOST_WAITING} reports were waiting; watch again")
        return await self._queue.get()


class Directory:
    """All workers' prefixes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._holders: dict[str, _Holder] = {}
        self._watchers: set[Watcher] = set()

    def publish(self, report: prefix_cache_pb2.PublishRequest) -> bool:
        """Takes a report in and tells it on. Returns whether the next one must be a snapshot. Raises `BadInput`."""
        lease_s = _check(report)
        holder = self._holders.get(report.worker_id)
        missed = holder is None or report.sequence != holder.sequence + 1
        if missed and not report.snapshot:
            return True
        if holder is None:
            if len(self._holders) >= MOST_WORKERS:
                raise BadInput("worker_id", f"{MOST_WORKERS} workers have reported, which is the limit")
            holder = self._holders[report.worker_id] = _Holder(0, 0.0)
        changed = _apply(report, {} if report.snapshot else dict(holder.prefixes))
        if len(changed) > MOST_PREFIXES:
            raise BadInput("events", f"would make {len(changed)} prefixes; at most {MOST_PREFIXES} of one worker")
        holder.sequence, holder.until_s, holder.prefixes = report.sequence, self._clock() + lease_s, changed
        if report.snapshot or report.events:  # a sign of life is for the lease alone
            self._tell(report)
        return False

    def lapse(self) -> None:
        """Forgets workers whose lease has run out, and says that they hold nothing."""
        now_s = self._clock()
        for worker_id in [name for name, holder in self._holders.items() if holder.until_s <= now_s]:
            del self._holders[worker_id]
            self._tell(prefix_cache_pb2.PublishRequest(worker_id=worker_id, snapshot=True))

    def watch(self) -> Watcher:
        """A watcher that is told everything there is, then what changes. Give it to `leave` in the end."""
        watcher = Watcher([part for name in self._holders for part in self._whole(name)])
        self._watchers.add(watcher)
        return watcher

    def leave(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)

    def _tell(self, report: prefix_cache_pb2.PublishRequest) -> None:
        for watcher in self._watchers:
            watcher.tell(report)

    def _whole(self, worker_id: str) -> Iterator[prefix_cache_pb2.PublishRequest]:
        """A worker's prefixes in parts: the first is a snapshot, the others add to it."""
        holder = self._holders[worker_id]
        parts = [*_parts(holder.prefixes)] or [()]
        for number, events in enumerate(parts):
            yield prefix_cache_pb2.PublishRequest(
                worker_id=worker_id, sequence=holder.sequence, snapshot=number == 0, events=events
            )


def _parts(
    prefixes: dict[bytes, prefix_cache_pb2.PrefixEvent],
) -> Iterator[tuple[prefix_cache_pb2.PrefixEvent, ...]]:
    events = iter(prefixes.values())
    while part := tuple(islice(events, MOST_EVENTS)):
        yield part


def _apply(
    report: prefix_cache_pb2.PublishRequest, prefixes: dict[bytes, prefix_cache_pb2.PrefixEvent]
) -> dict[bytes, prefix_cache_pb2.PrefixEvent]:
    for event in report.events:
        if event.removed:
            prefixes.pop(event.token_chain, None)
        else:
            prefixes[event.token_chain] = event
    return prefixes


def _check(report: prefix_cache_pb2.PublishRequest) -> float:
    """The lease in seconds. Raises `BadInput`."""
    if not 1 <= len(report.worker_id) <= 128:
        raise BadInput("worker_id", f"must have 1 to 128 characters, not {len(report.worker_id)}")
    if report.sequence < 1:
        raise BadInput("sequence", "counts from 1")
    if len(report.events) > MOST_EVENTS:
        raise BadInput("events", f"must be at most {MOST_EVENTS}, not {len(report.events)}")
    for event in report.events:
        if len(event.token_chain) != HASH_BYTES:
            raise BadInput("events.token_chain", f"must have {HASH_BYTES} bytes, not {len(event.token_chain)}")
        if len(event.chunk_chain) > MOST_CHUNKS or any(len(link) != HASH_BYTES for link in event.chunk_chain):
            raise BadInput("events.chunk_chain", f"must be at most {MOST_CHUNKS} of {HASH_BYTES} bytes each")
    lease_s = report.lease.seconds + report.lease.nanos / 1e9
    if not 0 < lease_s <= MOST_LEASE_S:
        raise BadInput("lease", f"must be more than 0 and at most {MOST_LEASE_S:g} s, not {lease_s:g} s")
    return lease_s
