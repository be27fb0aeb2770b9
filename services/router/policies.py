"""Who is asked first: Headway's placement, or one of the policies that it is measured against.

All share the roster, the prediction that goes with a call (its rung and load are counted against the worker until it
reports), the failover to the next one, and the worker's own yes or no. They differ in whom they ask and in what order.

| name | asks first |
|---|---|
| `headway` | of `SAMPLE` drawn and who holds most of the prompt: in time, then best quality, then earliest finish |
| `round-robin` | each in turn |
| `least-queue` | of `SAMPLE` drawn: least (queue depth + calls in flight + 1) * average latency |
| `prefix-hash[:DEPTH]` | the prompt's beginning on a hash ring, past workers with more than DEPTH requests in hand |
| `power-of-two` | the one of two drawn that has fewer requests in hand |

Nothing looks at all workers: a call costs the same with ten as with a thousand.
"""

import random
import re
from bisect import bisect_left
from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol

from headway.errors import NoSuchRung
from headway.prefix import CHUNK_BYTES
from headway.v1 import common_pb2
from services.router.placement import Ask, Candidate, Placement, best_first, expect
from services.router.prefixes import NOTHING_SHARED, Shared
from services.router.roster import Roster, Worker

DEFAULT = "headway"
SAMPLE = 16
"""Workers that are weighed for one request."""
ATTEMPTS = 4
"""Workers that a policy without prediction names: as many as are asked before the caller is told."""
_DEPTH = 8
_RING_PLACES = 16
_NO_LATENCY_MS = 1.0
"""Counts for a worker that has answered nothing yet, so that it is tried soon."""
_NAME = re.compile(r"(?P<name>[a-z-]+)(:(?P<depth>[0-9]{1,4}))?")


class PlacementPolicy(Protocol):
    """Whom to ask, in which order. Some remember whose turn it is."""

    name: str
    seeks_holders: bool
    """Whether the workers that hold the most of the prompt are weighed too, where they were not chosen."""

    def choose(self, ask: Ask, having: Sequence[Worker], draw: random.Random) -> Sequence[Worker]:
        """The workers to weigh: some of `having`, which is never empty and always in the same order."""

    def order(self, placements: Sequence[Placement], quantile: float) -> list[Placement]:
        """What is expected of those, best first."""


class Predicted:
    """Headway's own: by predicted finish."""

    name = DEFAULT
    seeks_holders = True

    def choose(self, ask: Ask, having: Sequence[Worker], draw: random.Random) -> Sequence[Worker]:
        return drawn(having, SAMPLE, draw)

    def order(self, placements: Sequence[Placement], quantile: float) -> list[Placement]:
        return best_first(placements, quantile)


class _AsChosen:
    """Policies that choose without predicting: what they chose first is asked first."""

    seeks_holders = False

    def order(self, placements: Sequence[Placement], quantile: float) -> list[Placement]:
        return list(placements)


class RoundRobin(_AsChosen):
    """Each worker in turn, whatever it has to do."""

    name = "round-robin"

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, ask: Ask, having: Sequence[Worker], draw: random.Random) -> Sequence[Worker]:
        first, self._turn = self._turn, self._turn + 1
        return [having[(first + offset) % len(having)] for offset in range(min(ATTEMPTS, len(having)))]


class LeastQueue(_AsChosen):
    """The shortest queue, in units of how long an answer usually takes there."""

    name = "least-queue"

    def choose(self, ask: Ask, having: Sequence[Worker], draw: random.Random) -> Sequence[Worker]:
        return sorted(drawn(having, SAMPLE, draw), key=queue_score)[:ATTEMPTS]


class PowerOfTwo(_AsChosen):
    """Of two drawn at random the one with less in hand; then of two others."""

    name = "power-of-two"

    def choose(self, ask: Ask, having: Sequence[Worker], draw: random.Random) -> Sequence[Worker]:
        four = drawn(having, ATTEMPTS, draw)
        return [*sorted(four[:2], key=in_hand), *sorted(four[2:], key=in_hand)]


class PrefixHash(_AsChosen):
    """Equal beginnings of prompts go to the same worker, on to the next one on the ring where that one has too much."""

    name = "prefix-hash"

    def __init__(self, depth: int = _DEPTH) -> None:
        """`depth`: a worker with more than this in hand is passed over while another is not."""
        self._depth = depth
        self._rings: dict[tuple[common_pb2.Kind, str], _Ring] = {}

    def choose(self, ask: Ask, having: Sequence[Worker], draw: random.Random) -> Sequence[Worker]:
        if not ask.prompt:
            return sorted(drawn(having, SAMPLE, draw), key=in_hand)[:ATTEMPTS]
        ring = self._rings.get((ask.kind, ask.asset))
        if ring is None or ring.workers is not having:  # a roster gives the same tuple until somebody comes or goes
            ring = self._rings[ask.kind, ask.asset] = _Ring(having)
        onward = ring.onward(ask.prompt[:CHUNK_BYTES], SAMPLE)
        free = [worker for worker in onward if in_hand(worker) <= self._depth]
        full = [worker for worker in onward if in_hand(worker) > self._depth]
        return [*free, *sorted(full, key=in_hand)][:ATTEMPTS]


class _Ring:
    """A hash ring on which each worker has several places, so that all get about equal shares."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = workers
        self._points = sorted(
            (_hash(f"{worker.address} {place}".encode()), index)
            for index, worker in enumerate(workers)
            for place in range(_RING_PLACES)
        )

    def onward(self, value: bytes, most: int) -> list[Worker]:
        """The first few different workers from a value's place on. Looks at a bounded part of the ring."""
        first, size = bisect_left(self._points, (_hash(value), 0)), len(self._points)
        looked_at = (self._points[(first + step) % size][1] for step in range(min(size, most * _RING_PLACES)))
        return [self.workers[index] for index in dict.fromkeys(looked_at)][:most]


def queue_score(worker: Worker) -> float:
    """(queue depth + calls in flight + 1) * average latency, in ms."""
    latency_ms = _NO_LATENCY_MS if worker.latency_ms is None else worker.latency_ms
    return (worker.queue_depth + worker.open_calls + 1) * latency_ms


def in_hand(worker: Worker) -> int:
    """Requests that it has not done: what it reports, or what this router has sent it, if that is more."""
    return max(worker.queue_depth, worker.open_calls)


def drawn(having: Sequence[Worker], most: int, draw: random.Random) -> Sequence[Worker]:
    """`most` of the workers, at random; all where they are no more, in random order too."""
    return draw.sample(having, min(most, len(having)))


def read_policy(name: str) -> PlacementPolicy:
    """The policy of this name. Raises ValueError for none of `NAMES`."""
    match = _NAME.fullmatch(name)
    if match is not None and match["name"] == "prefix-hash":
        return PrefixHash(int(match["depth"] or _DEPTH))
    if match is None or match["depth"] or match["name"] not in _PLAIN:
        raise ValueError(f"must be one of {', '.join(NAMES)}")
    return _PLAIN[match["name"]]()


_PLAIN = {policy.name: policy for policy in (Predicted, RoundRobin, LeastQueue, PowerOfTwo)}
NAMES = (*_PLAIN, "prefix-hash[:DEPTH]")


class Placer:
    """Places requests by one policy. Deterministic for a given source of randomness and order of requests."""

    def __init__(self, policy: PlacementPolicy, *, quantile: float, draw: random.Random) -> None:
        """`quantile`: a rung is expected where it comes in time in this share of cases."""
        self._policy, self._quantile, self._draw = policy, quantile, draw

    def place(
        self, ask: Ask, roster: Roster, now_s: float, *, shared: Shared = NOTHING_SHARED, probe: bool = True
    ) -> list[Placement]:
        """The workers to ask, best first; none when no healthy worker does this kind of work.

        `shared`: how much of the prompt is cached where.
        `probe`: the call is made and judged here, so a worker whose calls failed may be tried with it: it comes first,
        unless that would bring the answer later than the others can.

        Raises `NotFound` when none of those that do has the asset, and `BadInput` or `NoSuchRung` for a service level
        that none can meet.
        """
        having = roster.having(ask)
        if not having:
            return []
        drawn_now = self._policy.choose(ask, having, self._draw)
        if self._policy.seeks_holders:
            holders = roster.named(shared.longest)
            drawn_now = [*drawn_now, *(worker for worker in holders if worker not in drawn_now)]
        probed = [worker for worker in drawn_now if probe and worker.wants_probe][:1]
        chosen = [*probed, *(worker for worker in drawn_now if worker.takes(self._draw))] or drawn_now
        try:
            placements = self._expected(ask, chosen, roster, now_s, shared)
        except NoSuchRung:
            # Ladders may differ between workers, so another one may do: the one case in which all are looked at.
            if len(chosen) >= len(having):
                raise
            placements = self._expected(ask, having, roster, now_s, shared)
        ordered = self._policy.order(placements, self._quantile)
        return _probe_first(ordered, probed[0].address) if probed else ordered

    def _expected(
        self, ask: Ask, workers: Sequence[Worker], roster: Roster, now_s: float, shared: Shared
    ) -> list[Placement]:
        def candidate(worker: Worker) -> Candidate | None:
            held_bytes = shared.held_bytes(worker.description.worker_id) if worker.description else 0
            return roster.candidate(worker, ask.asset, held_bytes=held_bytes)

        found = [each for worker in workers if (each := candidate(worker)) is not None]
        return expect(ask, found, now_s, self._quantile)


def _probe_first(ordered: Sequence[Placement], address: str) -> list[Placement]:
    """The worker at `address` first, where it is expected to be as well in time as the best."""
    first = [each for each in ordered if each.view.address == address and each.in_time <= ordered[0].in_time]
    return [*first, *(each for each in ordered if each not in first)]


def _hash(value: bytes) -> int:
    return int.from_bytes(blake2b(value, digest_size=8).digest(), "big")
