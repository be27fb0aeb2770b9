"""A real server over loopback: identity, limits, errors with their details, health, reflection, the worker's state."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from server_rig import Handler, serving

from headway.deadline import floor_to_wire_s
from headway.errors import BadInput, Shed, from_rpc_error
from headway.server import StartError
from headway.v1 import errors_pb2, router_pb2, router_pb2_grpc


@asynccontextmanager
async def served(handler: Handler, **settings: Any) -> AsyncIterator[grpc.aio.Channel]:
    async with serving(handler, **settings) as address, grpc.aio.insecure_channel(address) as channel:
        yield channel


async def empty(request: Any, context: Any) -> router_pb2.ListWorkersResponse:
    return router_pb2.ListWorkersResponse()


async def failing(channel: grpc.aio.Channel) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await router_pb2_grpc.RouterStub(channel).ListWorkers(router_pb2.ListWorkersRequest(), timeout=5)
    return from_rpc_error(failure.value)


async def test_bad_input_names_its_fields_on_the_wire() -> None:
    async def refuse(request: Any, context: Any) -> Any:
        raise BadInput({"camera.k": "must be finite"})

    async with served(refuse) as channel:
        error = await failing(channel)
    assert error.status is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == errors_pb2.ERROR_REASON_BAD_INPUT
    assert error.violations == {"camera.k": "must be finite"}


async def test_a_refusal_carries_when_to_come_back() -> None:
    async def refuse(request: Any, context: Any) -> Any:
        raise Shed("full", retry_after_s=0.25)

    async with served(refuse) as channel:
        error = await failing(channel)
    assert (error.status, error.reason_name) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SHED")
    assert error.retry_after_s == 0.25
    assert ("grpc-retry-pushback-ms", "250") in error.trailers


async def test_a_fault_of_ours_says_little_and_the_server_lives_on() -> None:
    async def fail(request: Any, context: Any) -> Any:
        raise ZeroDivisionError("secret")

    async with served(fail) as channel:
        for _ in range(2):
            error = await failing(channel)
            assert (error.status, error.reason_name) == (grpc.StatusCode.INTERNAL, "FAILED")
            assert "secret" not in error.message


async def test_calls_over_the_limit_are_refused_while_the_others_go_on() -> None:
    gate, entered = asyncio.Event(), asyncio.Event()

    async def wait(request: Any, context: Any) -> Any:
        entered.set()
        await gate.wait()
        return router_pb2.ListWorkersResponse()

    async with served(wait, max_concurrent_rpcs=1) as channel:
        first = router_pb2_grpc.RouterStub(channel).ListWorkers(router_pb2.ListWorkersRequest(), timeout=5)
        await entered.wait()
        assert (await failing(channel)).reason_name == "TOO_MANY_CALLS"
        gate.set()
        await first


async def test_health_and_reflection_answer() -> None:
    async with served(empty) as channel:
        check = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="headway.v1.Router"), timeout=5
        )
        assert check.status == health_pb2.HealthCheckResponse.SERVING
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        async for answer in stub.ServerReflectionInfo(iter([asked]), timeout=5):
            names = {service.name for service in answer.list_services_response.service}
    assert {"headway.v1.Router", "grpc.health.v1.Health"} <= names


async def test_the_handler_sees_the_callers_deadline() -> None:
    seen: list[float] = []

    async def look(request: Any, context: Any) -> Any:
        seen.append(context.time_remaining())
        return router_pb2.ListWorkersResponse()

    async with served(look) as channel:
        await router_pb2_grpc.RouterStub(channel).ListWorkers(router_pb2.ListWorkersRequest(), timeout=2.341)
    assert 2.2 < seen[0] <= 2.35  # gRPC rounds up to 10 ms on the wire


@pytest.mark.parametrize("budget_s", [0.05, 0.3, 0.999, 1.0, 1.9, 2.341, 9.99, 10.0, 12.0, 100.0])
async def test_what_is_passed_on_never_grows_on_the_wire(budget_s: float) -> None:
    seen: list[float] = []

    async def look(request: Any, context: Any) -> Any:
        seen.append(context.time_remaining())
        return router_pb2.ListWorkersResponse()

    async with served(look) as channel:
        stub = router_pb2_grpc.RouterStub(channel)
        await stub.ListWorkers(router_pb2.ListWorkersRequest(), timeout=5)  # connects
        for _ in range(5):
            await stub.ListWorkers(router_pb2.ListWorkersRequest(), timeout=floor_to_wire_s(budget_s))
    assert max(seen[1:]) <= budget_s


async def test_a_busy_port_stops_the_start_with_its_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StartError, match=f"listen.*{address}.*in use"):
            async with served(empty, listen=address):
                pass


SETTLED = """
import gc
from headway.server import settle_memory
settle_memory()
gc.collect()
print(gc.get_freeze_count(), len(gc.get_objects(generation=2)))
"""


def test_what_was_built_at_start_is_not_looked_through_again() -> None:
    done = subprocess.run([sys.executable, "-c", SETTLED], capture_output=True, text=True, check=True)
    left_out, looked_through = map(int, done.stdout.split())
    assert left_out > 10_000
    assert looked_through < left_out / 10
