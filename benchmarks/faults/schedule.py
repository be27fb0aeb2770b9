"""Which fault comes when, and how it is made. One at a time: the next one comes when the mesh is whole again."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import grpc

from benchmarks.faults.cluster import ROUTERS, ChaosMesh
from headway.channels import open_channel
from headway.v1 import router_pb2, router_pb2_grpc, worker_pb2, worker_pb2_grpc

KILL, STALL, BLACK_HOLE, RESET, ROLLING = "kill -9", "stall", "black hole", "reset", "rolling restart"
LASTS_S = 3.0
"""Of a stall and of a black hole."""
CALM_S = (1.0, 3.0)
"""Between two faults."""
DRAINED_WITHIN_S = 25.0
EVERYTHING = "all"
_NUMBERS = ("a", "b", "one", "two")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done to which part."""

    kind: str
    part: str

    @property
    def group(self) -> str:
        """The part's kind, for the table: text worker, router, redis."""
        return " ".join(word for word in self.part.split("-") if word not in _NUMBERS)


@dataclass(frozen=True, slots=True)
class Event:
    """A fault that was made. Times in s, on the generator's clock."""

    fault: Fault
    began_s: float
    whole_s: float
    """When every part was ready again, and both routers saw all workers healthy."""


def faults(mesh: ChaosMesh, draw: random.Random, only: Sequence[Fault] = ()) -> Iterator[Fault]:
    """Every fault in random order, again and again; the rolling restart comes once in each round."""
    names = [part.name for part in mesh.parts]
    proxied = [*mesh.proxies]
    every = only or [
        *(Fault(KILL, name) for name in names),
        *(Fault(STALL, name) for name in names),
        *(Fault(BLACK_HOLE, name) for name in proxied),
        *(Fault(RESET, name) for name in proxied),
        Fault(ROLLING, EVERYTHING),
    ]
    while True:
        yield from draw.sample(every, len(every))


async def disturb(
    mesh: ChaosMesh, coming: Iterator[Fault], draw: random.Random, seconds: float, say: Callable[[Event], None]
) -> list[Event]:
    """Makes faults for so long. Raises RuntimeError when the mesh does not get whole again."""
    end_s, events = time.perf_counter() + seconds, list[Event]()
    while time.perf_counter() < end_s:
        await asyncio.sleep(draw.uniform(*CALM_S))
        fault, began_s = next(coming), time.perf_counter()
        await make(mesh, fault)
        events.append(Event(fault, began_s, time.perf_counter()))
        say(events[-1])
    return events


async def make(mesh: ChaosMesh, fault: Fault) -> None:
    """Makes one fault, and returns when the mesh is whole again."""
    match fault.kind:
        case "kill -9":
            await _killed(mesh, fault.part, signal.SIGKILL)
        case "stall":
            await _stalled(mesh, fault.part)
        case "black hole":
            await mesh.proxies[fault.part].black_hole(LASTS_S)
        case "reset":
            mesh.proxies[fault.part].reset()
        case _:
            for part in mesh.parts:
                if not part.name.endswith(("redis", "arbiter")):  # what holds no call is not drained
                    await _restarted(mesh, part.name)
    await mesh.whole()


async def _killed(mesh: ChaosMesh, name: str, how: signal.Signals) -> None:
    pid = mesh.supervisor.pids[name]
    os.kill(pid, how)
    await mesh.whole(lambda: mesh.supervisor.pids.get(name) not in (None, pid))


async def _stalled(mesh: ChaosMesh, name: str) -> None:
    pid = mesh.supervisor.pids[name]
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(LASTS_S)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def _restarted(mesh: ChaosMesh, name: str) -> None:
    """Told to drain, then to stop; it comes again as it does after a kill."""
    address = mesh.workers.get(name)
    if name in ROUTERS:
        address = mesh.routers[ROUTERS.index(name)]
    if address is not None:
        async with open_channel(address) as channel:
            with suppress(grpc.aio.AioRpcError):  # what does not finish in time is cut by the stop, as in life
                if name in ROUTERS:
                    stub = router_pb2_grpc.RouterStub(channel)
                    await stub.Drain(router_pb2.DrainRouterRequest(), timeout=DRAINED_WITHIN_S)
                else:
                    await worker_pb2_grpc.WorkerStub(channel).Drain(worker_pb2.DrainRequest(), timeout=DRAINED_WITHIN_S)
    await _killed(mesh, name, signal.SIGTERM)
