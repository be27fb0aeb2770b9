"""Follows what workers report of their prefixes. With the prefix cache gone nothing is known; nothing else changes."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc

from headway.telemetry import Metrics
from headway.upstream import Connection, UpstreamCredentials
from headway.v1 import prefix_cache_pb2, prefix_cache_pb2_grpc
from services.router.prefixes import PrefixIndex

log = logging.getLogger(__name__)

_REST_S = 0.5


async def follow_prefixes(
    connection: Connection, credentials: UpstreamCredentials, index: PrefixIndex, metrics: Metrics
) -> None:
    """Keeps `index` up to date until cancelled. Mutates it; whenever the stream ends it begins anew, empty.

    `credentials` are shown to the prefix cache.
    """
    reached = True
    while True:
        try:
            async with aclosing(_responses(connection, credentials)) as responses:
                async for response in responses:
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


async def _responses(connection: Connection, credentials: UpstreamCredentials) -> AsyncGenerator[Any, None]:
    """What the prefix cache tells, until it ends that or the connection is replaced."""
    stub = prefix_cache_pb2_grpc.PrefixCacheStub(connection.channel)
    call = stub.Watch(prefix_cache_pb2.WatchPrefixesRequest(), metadata=credentials.metadata())
    replaced, reading = asyncio.ensure_future(connection.replaced.wait()), asyncio.ensure_future(call.read())
    try:
        while True:
            await asyncio.wait({reading, replaced}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                return
            response = reading.result()
            if not isinstance(response, prefix_cache_pb2.WatchPrefixesResponse):  # grpc.aio.EOF
                return
            yield response
            reading = asyncio.ensure_future(call.read())
    finally:
        for waiting in (replaced, reading):
            waiting.cancel()
        call.cancel()
