"""A real server of the shared runtime, in this process, for the tests of the server."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from headway.config import ServiceConfig
from headway.server import Registration, Served, Service, serve
from headway.telemetry import Span
from headway.v1 import router_pb2_grpc

Handler = Callable[[Any, Any], Awaitable[Any]]


class Router(router_pb2_grpc.RouterServicer):
    """Stands in for no part of ours: it only gives the server something to call."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def ListWorkers(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._handler(request, context)


@asynccontextmanager
async def serving(handler: Handler, **settings: Any) -> AsyncIterator[str]:
    """Serves `ListWorkers` by `handler` on a free port of loopback; yields the address."""
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def build(service: Service) -> Served:
        def add(server: grpc.aio.Server) -> None:
            router_pb2_grpc.add_RouterServicer_to_server(Router(handler), server)

        return Served([Registration("headway.v1.Router", add)])

    config = ServiceConfig(metrics_port=None, drain_s=0.2, **settings)
    task = asyncio.create_task(serve(config, "router", build, span=Span.ROUTER_CALL, ready=port.set_result))
    await asyncio.wait([task, port], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    yield f"127.0.0.1:{port.result()}"
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(task, 10)
