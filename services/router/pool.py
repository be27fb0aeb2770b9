"""All workers: follows each, finds those behind a name, and says who is healthy."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from headway.deadline import Clock
from headway.telemetry import Metrics
from headway.upstream import Connection, UpstreamCredentials
from headway.v1 import common_pb2, router_pb2
from services.router.config import WorkerAddress
from services.router.identity import Identity
from services.router.member import Member
from services.router.resolver import is_name, resolve
from services.router.roster import Roster
from services.router.view import View

log = logging.getLogger(__name__)

Resolve = Callable[[str], Awaitable[frozenset[str]]]

_STATES = {
    router_pb2.WORKER_HEALTH_HEALTHY: "healthy",
    router_pb2.WORKER_HEALTH_DRAINING: "draining",
    router_pb2.WORKER_HEALTH_LOST: "lost",
    router_pb2.WORKER_HEALTH_EJECTED: "ejected",
}


def kind_name(kind: common_pb2.Kind) -> str:
    """As metrics carry it: text, image or splat."""
    return common_pb2.Kind.Name(kind).removeprefix("KIND_").lower()


@dataclass(frozen=True, slots=True)
class Upstream:
    """How workers are called."""

    credentials: UpstreamCredentials
    identity: Identity
    max_message_bytes: int
    resolve_interval_s: float
    leave_s: float
    """How long calls to a worker whose name is gone may go on."""
    longest_call_s: float = 3600.0


class Pool:
    """The workers. `run` follows them; everything else reads what is known now."""

    def __init__(
        self,
        workers: Sequence[WorkerAddress],
        upstream: Upstream,
        metrics: Metrics,
        clock: Clock,
        resolve: Resolve = resolve,
    ) -> None:
        self._workers, self._upstream = tuple(workers), upstream
        self._metrics, self._clock, self._resolve = metrics, clock, resolve
        self._members: dict[tuple[common_pb2.Kind, str], Member] = {}
        self._unresolved: dict[WorkerAddress, str] = {}
        self.changed = asyncio.Event()
        """Set, and replaced by a new one, when a worker comes, goes, or changes its health or its assets."""
        self._roster: Roster | None = None

    async def run(self) -> None:
        """Follows every worker until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for worker in self._workers:
                follow = self._follow_name if is_name(worker.address) else self._follow_address
                tasks.create_task(follow(worker))

    def views(self) -> list[View]:
        """The healthy workers, of every kind."""
        return [view for member in self._members.values() if (view := member.view()) is not None]

    def roster(self) -> Roster:
        """The healthy workers, indexed; the same until one comes, goes, or changes its health or its assets."""
        if self._roster is None:
            healthy = router_pb2.WORKER_HEALTH_HEALTHY
            self._roster = Roster(member for member in self._members.values() if member.health == healthy)
        return self._roster

    def member(self, view: View) -> Member | None:
        """The worker of a view; None when it is gone since."""
        return self._members.get((view.description.kind, view.address))

    def entries(self) -> list[router_pb2.WorkerEntry]:
        """Every worker that is configured or was found by name."""
        lost = router_pb2.WORKER_HEALTH_LOST
        unresolved = [
            router_pb2.WorkerEntry(address=worker.address, kind=worker.kind, health=lost, detail=why)
            for worker, why in self._unresolved.items()
        ]
        return [member.entry() for member in self._members.values()] + unresolved

    async def _follow_address(self, worker: WorkerAddress) -> None:
        upstream, key = self._upstream, (worker.kind, worker.address)
        connection = Connection(
            worker.address,
            upstream.credentials,
            max_message_bytes=upstream.max_message_bytes,
            server_name=worker.server_name,
            longest_call_s=upstream.longest_call_s,
        )
        member = Member(
            worker.address, worker.kind, connection, upstream.identity,
            clock=self._clock, changed=self._count, others=lambda: self._healthy(worker.kind),
            may_leave=lambda: self._may_leave(worker.kind),
        )  # fmt: skip
        self._members[key] = member
        self._count()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(connection.follow())
                tasks.create_task(member.follow())
        finally:
            if self._members.get(key) is member:  # two names may stand for one address
                del self._members[key]
            self._count()
            await connection.close(upstream.leave_s)

    async def _follow_name(self, worker: WorkerAddress) -> None:
        """Follows each address behind a name. A name that cannot be resolved keeps the addresses that it had."""
        following: dict[str, asyncio.Task[None]] = {}
        host = worker.address.rpartition(":")[0]
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    found = await self._resolve(worker.address)
                    self._unresolved.pop(worker, None)
                except OSError as error:
                    found = frozenset(following)
                    if not found:
                        self._unresolved[worker] = f"its name cannot be resolved: {error.strerror or error}"
                for address in following.keys() - found:
                    following.pop(address).cancel()
                for address in sorted(found - following.keys()):
                    found_worker = WorkerAddress(worker.kind, address, server_name=host)
                    following[address] = tasks.create_task(self._follow_address(found_worker))
                await asyncio.sleep(self._upstream.resolve_interval_s)

    def _healthy(self, kind: common_pb2.Kind) -> bool:
        return any(view.description.kind == kind for view in self.views())

    def _may_leave(self, kind: common_pb2.Kind) -> bool:
        """Whether one more worker of a kind may be ejected: at least half of the healthy ones stay."""
        healthy, out = router_pb2.WORKER_HEALTH_HEALTHY, router_pb2.WORKER_HEALTH_EJECTED
        shown = self._shown(kind)
        return shown.count(healthy) > shown.count(out) + 1

    def _count(self) -> None:
        self._roster = None
        self.changed.set()
        self.changed = asyncio.Event()
        for kind in {worker.kind for worker in self._workers}:
            shown = self._shown(kind)
            for health, state in _STATES.items():
                self._metrics.workers.labels(kind_name(kind), state).set(shown.count(health))

    def _shown(self, kind: common_pb2.Kind) -> list[router_pb2.WorkerHealth]:
        return [member.shown_health for (of, _), member in self._members.items() if of == kind]
