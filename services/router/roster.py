"""Who is healthy, by what it does: built when that changes, so that a request looks only at those that it weighs."""

import copy
import random
from collections.abc import Hashable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol, Self, TypeVar

from headway.cost import Foreign
from headway.errors import NotFound
from headway.v1 import common_pb2
from services.router.placement import Ask, Candidate
from services.router.view import Description, View

Key = TypeVar("Key", bound=Hashable)


class Worker(Protocol):
    """One worker as placement policies see it before they predict."""

    @property
    def address(self) -> str:
        """Where it listens."""

    @property
    def description(self) -> Description | None:
        """What it is; None before it was first reached."""

    @property
    def queue_depth(self) -> int:
        """Requests that it has admitted and not done, by its last report."""

    @property
    def open_calls(self) -> int:
        """Calls of this router to it that are not over."""

    @property
    def latency_ms(self) -> float | None:
        """Moving average of how long this router's calls to it took; None before the first was answered."""

    def takes(self, draw: random.Random) -> bool:
        """Whether a request may be placed there now: not on one whose calls fail, and on one that returns not all."""

    @property
    def wants_probe(self) -> bool:
        """Whether its calls failed, and one should be sent to see whether they still do."""

    def view(self) -> View | None:
        """Its state for a prediction; None where it is not healthy any more."""


class Roster:
    """The healthy workers at one time, in the order of their addresses. Immutable."""

    def __init__(self, workers: Iterable[Worker]) -> None:
        """`workers`: those to place on, of every kind; ones that were never described are left out."""
        ordered = sorted(workers, key=_address)
        known = [(worker, worker.description) for worker in ordered if worker.description is not None]
        self._by_id = {about.worker_id: worker for worker, about in known}
        self._kinds = {about.kind for _, about in known}
        self._having = _grouped(
            ((about.kind, name), worker)
            for worker, about in known
            for name in {"", *(asset.name for asset in about.assets), *(asset.hash for asset in about.assets)}
            if about.assets
        )
        self._on_device = _grouped((about.device_id, worker) for worker, about in known if about.device_id)
        self._only: AbstractSet[str] | None = None

    def within(self, addresses: AbstractSet[str]) -> Self:
        """The same, but requests are placed on the workers at these addresses alone."""
        narrowed = copy.copy(self)
        narrowed._only = addresses
        return narrowed

    def having(self, ask: Ask) -> Sequence[Worker]:
        """The workers that have the asset; none when no worker does this kind of work. Raises `NotFound`."""
        found = self._having.get((ask.kind, ask.asset), ())
        if not found and ask.kind in self._kinds:
            raise NotFound(ask.field, ask.asset, self._names(ask.kind))
        return found if self._only is None else [worker for worker in found if self._may(worker)]

    def named(self, worker_ids: Iterable[str]) -> list[Worker]:
        """The healthy ones of these workers."""
        found = (worker for name in worker_ids if (worker := self._by_id.get(name)) is not None)
        return [worker for worker in found if self._may(worker)]

    def _may(self, worker: Worker) -> bool:
        return self._only is None or worker.address in self._only

    def asset_hash(self, ask: Ask) -> str | None:
        """The content of the asset that is asked for, as the first worker that has it says."""
        having = self._having.get((ask.kind, ask.asset), ())
        about = having[0].description if having else None
        found = (asset.hash for asset in about.assets if ask.asset in ("", asset.name, asset.hash)) if about else ()
        return next(iter(found), None)

    def candidate(self, worker: Worker, asset: str, *, held_bytes: int = 0) -> Candidate | None:
        """What a prediction for this worker needs; None when it is not healthy any more, or has lost the asset.

        `held_bytes`: leading bytes of the prompt that are in its cache.
        """
        view = worker.view()
        found = view.asset(asset) if view is not None else None
        if view is None or found is None:
            return None
        return Candidate(view, found, self._foreign(worker, view), held_bytes)

    def _foreign(self, worker: Worker, view: View) -> Foreign:
        others = (other for other in self._on_device.get(view.description.device_id, ()) if other is not worker)
        return [row for other in others if (seen := other.view()) is not None for row in seen.demand]

    def _names(self, kind: common_pb2.Kind) -> list[str]:
        workers = self._having.get((kind, ""), ())
        return sorted({asset.name for worker in workers if worker.description for asset in worker.description.assets})


def _grouped(pairs: Iterable[tuple[Key, Worker]]) -> Mapping[Key, tuple[Worker, ...]]:
    """Workers by key, each group in the order given."""
    groups: dict[Key, list[Worker]] = {}
    for key, worker in pairs:
        groups.setdefault(key, []).append(worker)
    return {key: tuple(group) for key, group in groups.items()}


def _address(worker: Worker) -> str:
    return worker.address
