"""One worker: its connection, what it reports, and what was sent to it since it last did."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from headway.cost import Load
from headway.deadline import Clock
from headway.errors import HeadwayError
from headway.v1 import common_pb2, router_pb2, worker_pb2, worker_pb2_grpc
from services.router.ejection import Ejection, is_fault
from services.router.identity import ROUTER, Identity
from services.router.view import BadReport, Description, Report, View, make_view, read_description, read_report

log = logging.getLogger(__name__)

REPORT_INTERVAL_S = 0.05
SILENCE_S = 0.7
"""A worker reports at least every 0.25 s; one that is silent for this long is lost."""
_LATENCY_WEIGHT = 0.1
"""Weight of the newest answer in the average."""
_DESCRIBE_S = 1.0
_RETRY_S = 0.2


@dataclass(slots=True, eq=False)
class Sent:
    """A request that was sent to the worker, until a report knows of it."""

    load: Load
    sent_s: float
    admitted_s: float | None = None
    """When its plan came back."""
    call: Any = None
    """The call, once it is made."""
    gave_up: bool = False
    """The call was cancelled because the worker does not get on, not by the caller."""

    def known_to(self, received_s: float) -> bool:
        """Whether a report that came at `received_s` counts it: after its plan, or a report's interval later."""
        return (self.admitted_s is not None and self.admitted_s <= received_s) or (
            received_s - self.sent_s >= 2 * REPORT_INTERVAL_S
        )


class Member:
    """A worker at one address. `follow` keeps it up to date; the rest reads."""

    def __init__(
        self,
        address: str,
        kind: common_pb2.Kind,
        channel: grpc.aio.Channel,
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
        self.address, self.kind, self.channel, self.identity = address, kind, channel, identity
        self.health: router_pb2.WorkerHealth = router_pb2.WORKER_HEALTH_LOST
        self.detail = "not reached yet"
        self.description: Description | None = None
        self.report: Report | None = None
        self.latency_ms: float | None = None
        """Moving average of how long answers took from here; None before the first."""
        self._clock, self._changed, self._others = clock, changed, others
        self._may_leave = may_leave
        self.ejection = self._new_ejection()
        self._sent: list[Sent] = []
        self._calls: list[Sent] = []
        self._view: View | None = None

    def view(self) -> View | None:
        """The worker for placement; None unless it is healthy."""
        if self.health != router_pb2.WORKER_HEALTH_HEALTHY or self.description is None or self.report is None:
            return None
        if self._view is None:
            self._view = make_view(self.address, self.description, self.report, [sent.load for sent in self._sent])
        return self._view

    @property
    def queue_depth(self) -> int:
        """Requests that it has admitted and not done, by its last report."""
        return 0 if self.report is None else self.report.in_flight

    @property
    def open_calls(self) -> int:
        """Calls from here to it that are not over."""
        return len(self._calls)

    def takes(self, draw: random.Random) -> bool:
        """Whether a request may be placed there now: see `Ejection`."""
        return self.ejection.takes(draw)

    @property
    def wants_probe(self) -> bool:
        """Whether one call should be sent to see how it does: see `Ejection`."""
        return self.ejection.wants_probe

    @property
    def shown_health(self) -> router_pb2.WorkerHealth:
        """The health as people and metrics see it."""
        healthy = self.health == router_pb2.WORKER_HEALTH_HEALTHY
        return router_pb2.WORKER_HEALTH_EJECTED if healthy and self.ejection.is_out else self.health

    def answered(self, sent: Sent) -> None:
        """Counts an answer that is complete now. Mutates the member."""
        self.ejection.worked(sent)
        taken_ms = (self._clock() - sent.sent_s) * 1000
        before_ms = taken_ms if self.latency_ms is None else self.latency_ms
        self.latency_ms = before_ms + _LATENCY_WEIGHT * (taken_ms - before_ms)

    def failed(self, sent: Sent, error: HeadwayError) -> None:
        """Counts an error that a call ended with, where it speaks against the worker. Mutates the member."""
        begun = sent.admitted_s is not None
        if is_fault(error, begun=begun, waited_s=self._clock() - sent.sent_s):
            self.ejection.failed(sent)

    @contextmanager
    def sending(self, load: Load) -> Iterator[Sent]:
        """Counts `load` as the worker's until a report does, or until the call is over."""
        sent = Sent(load, self._clock())
        self._sent.append(sent)
        self._calls.append(sent)
        self.ejection.sent(sent)
        self._view = None
        try:
            yield sent
        finally:
            self._calls.remove(sent)
            self.ejection.over(sent)
            if sent in self._sent:
                self._sent.remove(sent)
                self._view = None

    def expect(self, load: Load) -> None:
        """Counts `load`, which a client will send itself, until a report could know of it. Mutates the member."""
        self._sent.append(Sent(load, self._clock()))
        self._view = None

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
        before, self.description = self.description, read_description(message, self.kind)
        if before is None or before.worker_id != self.description.worker_id:
            self.ejection = self._new_ejection()  # a new process has done nothing wrong
        self._view = None
        self._changed()

    def _new_ejection(self) -> Ejection:
        return Ejection(self._clock, may_leave=self._may_leave, changed=self._changed)

    async def _states(self) -> AsyncIterator[worker_pb2.WorkerState]:
        request = worker_pb2.WatchWorkerRequest()
        request.min_interval.FromMilliseconds(round(REPORT_INTERVAL_S * 1000))
        call = worker_pb2_grpc.WorkerStub(self.channel).Watch(request, metadata=self.identity.metadata(ROUTER))
        try:
            while True:
                async with asyncio.timeout(SILENCE_S):
                    state = await call.read()
                if not isinstance(state, worker_pb2.WorkerState):  # grpc.aio.EOF
                    return
                yield state
        finally:
            call.cancel()

    def _take(self, state: worker_pb2.WorkerState) -> None:
        assert self.description is not None
        if state.worker_id != self.description.worker_id:
            raise BadReport("another worker reports at its address")
        now_s = self._clock()
        self.report = read_report(state, now_s)
        self._sent = [sent for sent in self._sent if not sent.known_to(now_s)]
        self._view = None
        draining = self.report.draining
        self._become(router_pb2.WORKER_HEALTH_DRAINING if draining else router_pb2.WORKER_HEALTH_HEALTHY, "")

    def _lose(self, why: str) -> None:
        self._become(router_pb2.WORKER_HEALTH_LOST, why)
        self._view = None
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
