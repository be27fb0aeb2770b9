"""Follows what workers report of their prefixes. With the prefix cache gone nothing is known; nothing else changes."""

import asyncio
import logging

import grpc

from headway.telemetry import Metadata, Metrics
from headway.v1 import prefix_cache_pb2, prefix_cache_pb2_grpc
from services.router.prefixes import PrefixIndex

log = logging.getLogger(__name__)

_REST_S = 0.5


async def follow_prefixes(channel: grpc.aio.Channel, identity: Metadata, index: PrefixIndex, metrics: Metrics) -> None:
    """Keeps `index` up to date until cancelled. Mutates it; whenever the stream ends it begins anew, empty.

    `identity` is shown to the prefix cache.
    """
    stub, reached = prefix_cache_pb2_grpc.PrefixCacheStub(channel), True
    while True:
        try:
            call = stub.Watch(prefix_cache_pb2.WatchPrefixesRequest(), metadata=identity)
            async for response in call:
                reached = True
                index.take(response.report)
                metrics.held_blocks.set(index.blocks)
        except grpc.aio.AioRpcError as error:
            if reached:
                log.warning("which worker holds which prompts is not known for now: %s", error.details())
            reached = False
        finally:
            index.clear()
            metrics.held_blocks.set(0)
        await asyncio.sleep(_REST_S)
