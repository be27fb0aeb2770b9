"""Asks a part of the mesh whether it is ready."""

import asyncio
from typing import assert_never

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headway.channels import open_channel
from headway.cli.topology import AcceptReady, GrpcReady, Ready, RedisReady, RouterReady
from headway.client import AsyncHeadway
from headway.errors import HeadwayError
from headway.local_redis import answers
from headway.v1 import errors_pb2, router_pb2

_ASK_S = 2.0


async def is_ready(ready: Ready) -> bool:
    """Whether the part is ready now. Takes at most about two seconds."""
    match ready:
        case GrpcReady():
            return await _serves(ready)
        case RouterReady(address, spare):
            return await _sees_all(address, spare)
        case RedisReady(url):
            return await asyncio.to_thread(answers, url)
        case AcceptReady(address):
            return await _accepts(address)
        case _:
            assert_never(ready)


async def _serves(ready: GrpcReady) -> bool:
    async with open_channel(ready.address, ready.credentials, server_name=ready.server_name) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_ASK_S)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def _sees_all(address: str, spare: int) -> bool:
    async with AsyncHeadway(address) as mesh:
        try:
            answer = await mesh.workers(deadline_s=_ASK_S)
        except HeadwayError as error:
            return error.reason == errors_pb2.ERROR_REASON_UNAUTHENTICATED
    return sum(worker.health != router_pb2.WORKER_HEALTH_HEALTHY for worker in answer.workers) <= spare


async def _accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    unix = address.removeprefix("unix:") if address.startswith("unix:") else None
    opening = (
        asyncio.open_connection(host.strip("[]"), int(port)) if unix is None else asyncio.open_unix_connection(unix)
    )
    try:
        _, writer = await asyncio.wait_for(opening, _ASK_S)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
