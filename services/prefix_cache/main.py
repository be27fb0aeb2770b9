"""Starts the prefix cache: `headway-prefix-cache --listen HOST:PORT --redis URL`."""

import asyncio
import contextlib
import sys
from functools import partial

import grpc

from headway.config import load
from headway.server import Registration, Served, Service, run
from headway.telemetry import Span
from headway.v1 import prefix_cache_pb2_grpc
from services.prefix_cache.blocks import BlockStore
from services.prefix_cache.config import PrefixCacheConfig
from services.prefix_cache.directory import Directory
from services.prefix_cache.link import RedisLink
from services.prefix_cache.servicer import PrefixCacheServicer
from services.prefix_cache.store import ResultStore

_WATCH_INTERVAL_S = 1.0
_LAPSE_INTERVAL_S = 0.1


async def build(config: PrefixCacheConfig, service: Service) -> Served:
    """Serves whether Redis is there or not: calls answer `StoreUnavailable` until it is."""
    link = RedisLink(
        config.redis, connections=config.redis_connections, reachable=service.metrics.store_reachable.labels("cache")
    )
    service.closing.push_async_callback(link.close)
    directory = Directory(service.clock)
    for task in (link.watch(_WATCH_INTERVAL_S, config.redis_timeout_ms / 1000), _lapse(directory)):
        service.closing.push_async_callback(_ended, asyncio.create_task(task))
    servicer = PrefixCacheServicer(config, ResultStore(link), BlockStore(link), directory, service.clock)

    def add(server: grpc.aio.Server) -> None:
        prefix_cache_pb2_grpc.add_PrefixCacheServicer_to_server(servicer, server)

    return Served([Registration("headway.v1.PrefixCache", add)])


async def _lapse(directory: Directory) -> None:
    """Forgets workers whose lease has run out, until cancelled."""
    while True:
        directory.lapse()
        await asyncio.sleep(_LAPSE_INTERVAL_S)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def main() -> None:
    """The console script."""
    config = load(PrefixCacheConfig, sys.argv[1:], prog="headway-prefix-cache")
    run(config, "prefix-cache", partial(build, config), span=Span.CACHE_CALL)


if __name__ == "__main__":
    main()
