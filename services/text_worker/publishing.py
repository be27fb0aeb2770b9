"""Tells the prefix cache which prefixes this worker holds: a snapshot, then what changes, numbered without a gap."""

import asyncio
import logging
from collections.abc import Sequence

import grpc

from headway.deadline import Clock
from headway.upstream import Connection, UpstreamCredentials
from headway.v1 import prefix_cache_pb2, prefix_cache_pb2_grpc
from services.text_worker.prefixes import HeldPrefixes

log = logging.getLogger(__name__)

INTERVAL_S = 0.05
LEASE_S = 10.0
_SIGN_OF_LIFE_S = LEASE_S / 4
_REST_S = 1.0
_TIMEOUT_S = 2.0
_MOST_EVENTS = 1024


class Publisher:
    """Reports until cancelled. The prefix cache slow or gone costs nothing but the routers' knowledge."""

    def __init__(
        self,
        connection: Connection,
        credentials: UpstreamCredentials,
        worker_id: str,
        held: HeldPrefixes,
        clock: Clock,
    ) -> None:
        self._connection, self._credentials = connection, credentials
        self._worker_id, self._held, self._clock = worker_id, held, clock
        self._sequence = 0
        self._anew = True
        self._reached = True
        self._reported_s = 0.0

    async def run(self) -> None:
        """Reports again and again."""
        while True:
            rest_s = INTERVAL_S if await self._try() else _REST_S
            await asyncio.sleep(rest_s)

    async def _try(self) -> bool:
        try:
            await self._report()
        except grpc.aio.AioRpcError as error:
            if self._reached:
                log.warning("routers are not told which prefixes are here: %s", error.details())
            self._anew, self._reached = True, False
            return False
        self._reached = True
        return True

    async def _report(self) -> None:
        snapshot, now_s = self._anew, self._clock()
        events = self._held.whole() if snapshot else self._held.changes()
        if not snapshot and not events and now_s - self._reported_s < _SIGN_OF_LIFE_S:
            return
        self._anew, self._reported_s = False, now_s
        for first in range(0, max(1, len(events)), _MOST_EVENTS):
            if await self._publish(events[first : first + _MOST_EVENTS], snapshot=snapshot and first == 0):
                self._anew = True
                return

    async def _publish(self, events: Sequence[prefix_cache_pb2.PrefixEvent], *, snapshot: bool) -> bool:
        """Whether the prefix cache wants a snapshot."""
        self._sequence += 1
        report = prefix_cache_pb2.PublishRequest(
            worker_id=self._worker_id, sequence=self._sequence, snapshot=snapshot, events=events
        )
        report.lease.FromMilliseconds(round(LEASE_S * 1000))
        stub = prefix_cache_pb2_grpc.PrefixCacheStub(self._connection.channel)
        response = await stub.Publish(report, timeout=_TIMEOUT_S, metadata=self._credentials.metadata())
        return bool(response.need_snapshot)
