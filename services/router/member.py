"""One worker: its connection, and what is known of it over that."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from headway.deadline import Clock
from headway.upstream import Connection
from headway.v1 import common_pb2, router_pb2, worker_pb2, worker_pb2_grpc
from services.router.identity import ROUTER, Identity
from services.router.ledger import REPORT_INTERVAL_S, Ledger
from services.router.view import BadReport, View, check_report, read_description, read_report

log = logging.getLogger(__name__)

SILENCE_S = 1.5
"""A worker reports at least every 0.25 s; one that is silent for this long is lost."""
_DESCRIBE_S = 1.0
_RETRY_S = 0.2


class Member(Ledger):
    """A worker at one address: its ledger, and the connection that `follow` keeps it up to date over."""

    def __init__(
        self,
        address: str,
        kind: common_pb2.Kind,
        connection: Connection,
        identity: Identity,
        *,
        clock: Clock,
        changed: Callable[[], None],
        others: Callable[[], bool],
        may_leave: Callable[[], bool],
    ) -> None:
        """`changed` is called when the health or the description changes; `identity` is shown to the worker.

        `others` says whether another worker of the kind is healthy: then calls to this one are given up when its
        reports stop, so that they go on there. Without others they may still be answered by a worker that only stalled.
        `may_leave` says whether this one may be ejected: see `Ejection`.
        """
        super().__init__(address, clock, changed=changed, may_leave=may_leave)
        self.kind, self.identity, self._connection = kind, identity, connection
        self.health: router_pb2.WorkerHealth = router_pb2.WORKER_HEALTH_LOST
        self.detail = "not reached yet"
        self._others = others

    @property
    def channel(self) -> grpc.aio.Channel:
        """For a call that begins now."""
        return self._connection.channel

    def view(self) -> View | None:
        """The worker for placement; None unless it is healthy."""
        return super().view() if self.health == router_pb2.WORKER_HEALTH_HEALTHY else None

    @property
    def shown_health(self) -> router_pb2.WorkerHealth:
        """The health as people and metrics see it."""
        healthy = self.health == router_pb2.WORKER_HEALTH_HEALTHY
        return router_pb2.WORKER_HEALTH_EJECTED if healthy and self.ejection.is_out else self.health

    def entry(self) -> router_pb2.WorkerEntry:
        """What the router knows of it, for `ListWorkers`."""
        entry = router_pb2.WorkerEntry(address=self.address, kind=self.kind, health=self.shown_health)
        ejected = entry.health == router_pb2.WORKER_HEALTH_EJECTED
        entry.detail = "its calls fail; it gets one now and then" if ejected else self.detail
        if self.description is not None:
            entry.worker_id, entry.device_id = self.description.worker_id, self.description.device_id
            entry.engine = self.description.engine
            entry.assets.extend(asset.name for asset in self.description.assets)
        if self.report is not None:
            entry.backlog_ms, entry.in_flight = self.report.backlog_ms, self.report.in_flight
            entry.report_age_ms = (self._clock() - self.report.received_s) * 1000
        return entry

    async def follow(self) -> None:
        """Describes and watches the worker, again and again, until cancelled."""
        while True:
            try:
                await self.describe()
                async for state in self._states():
                    if self.description is None or state.assets_version != self.description.assets_version:
                        await self.describe()
                    self._take(state)
                self._lose("it ended its reports")
            except grpc.aio.AioRpcError as error:
                self._lose(error.details() or error.code().name)
            except TimeoutError:
                self._lose(f"no report for {SILENCE_S:g} s")
            except BadReport as error:
                self._lose(str(error))
            except Exception:  # a fault with one worker must not take the others away
                log.exception("following %s failed", self.address)
                self._lose("following it failed; see the router's log")
            await asyncio.sleep(_RETRY_S)

    async def describe(self) -> None:
        """Asks the worker what it is, and what can be asked of it. Raises `AioRpcError` and `BadReport`."""
        stub = worker_pb2_grpc.WorkerStub(self.channel)
        message = await stub.Describe(
            worker_pb2.DescribeRequest(), timeout=_DESCRIBE_S, metadata=self.identity.metadata(ROUTER)
        )
        self.described(read_description(message, self.kind))
        self._changed()

    async def _states(self) -> AsyncIterator[worker_pb2.WorkerState]:
        request = worker_pb2.WatchWorkerRequest()
        request.min_interval.FromMilliseconds(round(REPORT_INTERVAL_S * 1000))
        channel, call = self.channel, self._watch(request)
        try:
            while True:
                if self.channel is not channel:
                    call.cancel()
                    channel, call = self.channel, self._watch(request)
                async with asyncio.timeout(SILENCE_S):
                    state = await call.read()
                if not isinstance(state, worker_pb2.WorkerState):  # grpc.aio.EOF
                    return
                yield state
        finally:
            call.cancel()

    def _watch(self, request: worker_pb2.WatchWorkerRequest) -> Any:
        stub = worker_pb2_grpc.WorkerStub(self.channel)
        return stub.Watch(request, metadata=self.identity.metadata(ROUTER))

    def _take(self, state: worker_pb2.WorkerState) -> None:
        assert self.description is not None
        if state.worker_id != self.description.worker_id:
            raise BadReport("another worker reports at its address")
        check_report(state)
        received_s = self._clock()
        self.heard(received_s, lambda: read_report(state, received_s))
        self._become(router_pb2.WORKER_HEALTH_DRAINING if state.draining else router_pb2.WORKER_HEALTH_HEALTHY, "")

    def _lose(self, why: str) -> None:
        self._become(router_pb2.WORKER_HEALTH_LOST, why)
        if self._others():
            for sent in self._calls:
                if sent.call is not None:
                    sent.gave_up = sent.call.cancel()

    def _become(self, health: router_pb2.WorkerHealth, detail: str) -> None:
        before, self.health, self.detail = self.health, health, detail
        if before != health:
            name = router_pb2.WorkerHealth.Name(health).removeprefix("WORKER_HEALTH_").lower()
            log.info("worker %s is %s%s", self.address, name, f": {detail}" if detail else "")
            self._changed()
