"""The least that a hop in Python can be: `python -m benchmarks.hop.bare LISTEN UPSTREAM`.

grpc.aio on uvloop, bytes in and bytes out, nothing read and nothing decided.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop

from headway.channels import open_channel


class Passing(grpc.GenericRpcHandler):
    """Passes every unary-stream call on, with its deadline."""

    def __init__(self, upstream: grpc.aio.Channel) -> None:
        self._upstream = upstream

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        call = self._upstream.unary_stream(details.method)

        async def passed(request: bytes, context: Any) -> AsyncIterator[bytes]:
            async for message in call(request, timeout=context.time_remaining()):
                yield message

        return grpc.unary_stream_rpc_method_handler(passed)


async def main(listen: str, upstream: str) -> None:
    """Serves until it is killed."""
    async with open_channel(upstream) as channel:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Passing(channel),))
        server.add_insecure_port(listen)
        await server.start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:3]))
