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
from services.prefix_cache.config import PrefixCacheConfig
from services.prefix_cache.servicer import PrefixCacheServicer
from services.prefix_cache.store import ResultStore

_WATCH_INTERVAL_S = 1.0


async def build(config: PrefixCacheConfig, service: Service) -> Served:
    """Serves whether Redis is there or not: calls answer `StoreUnavailable` until it is."""
    store = ResultStore(config.redis, connections=config.redis_connections, reachable=service.metrics.store_reachable)
    service.closing.push_async_callback(store.close)
    watching = asyncio.create_task(store.watch(_WATCH_INTERVAL_S, config.redis_timeout_ms / 1000))
    service.closing.push_async_callback(_ended, watching)
    servicer = PrefixCacheServicer(config, store, service.clock)

    def add(server: grpc.aio.Server) -> None:
        prefix_cache_pb2_grpc.add_PrefixCacheServicer_to_server(servicer, server)

    return Served([Registration("headway.v1.PrefixCache", add)])


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
