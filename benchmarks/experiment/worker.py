"""The worker under test: a process of its own, on cores that the generator keeps off."""

import asyncio
import os
import re
import signal
import socket
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from headway.v1 import worker_pb2, worker_pb2_grpc

START_S, STOP_S = 120.0, 20.0
BUCKET = re.compile(r'^headway_refusal_seconds_bucket\{kind="\w+",le="([^"]+)"\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Cores:
    """Which cores the worker and the generator run on; None where the system cannot keep them apart."""

    worker: tuple[int, ...] | None
    generator: tuple[int, ...] | None

    @property
    def threads(self) -> int:
        return len(self.worker) if self.worker else os.cpu_count() or 1


def split_cores() -> Cores:
    """The last core for the generator and all others for the worker; moves this process there."""
    if not hasattr(os, "sched_getaffinity"):
        return Cores(None, None)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return Cores(None, None)
    os.sched_setaffinity(0, cores[-1:])
    return Cores(tuple(cores[:-1]), (cores[-1],))


def usable_cores() -> list[int]:
    """That this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]


def usable_threads() -> int:
    """Of the worker, before the cores are split."""
    return max(1, len(os.sched_getaffinity(0)) - 1) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class RunningWorker:
    """A worker that serves."""

    address: str
    metrics_port: int
    rungs: tuple[tuple[str, float], ...]
    """(label, quality) of its first asset's ladder, best first."""
    described: Mapping[str, str]

    async def refusals(self) -> dict[float, float]:
        """How many refusals took at most so many seconds, from the handler's entry on; by upper bound."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        text = await asyncio.to_thread(fetch, url)
        return {float(bound): float(count) for bound, count in BUCKET.findall(text)}


@asynccontextmanager
async def running(command: Sequence[str], cores: Cores) -> AsyncIterator[RunningWorker]:
    """Starts a worker and stops it after the block. `command` lacks only the flags of this module."""
    with tempfile.TemporaryDirectory(prefix="headway-bench-") as folder:
        address, port = f"unix:{folder}/worker.sock", free_port()
        flags = ("--listen", address, "--metrics-port", str(port), "--threads", str(cores.threads))
        process = await asyncio.create_subprocess_exec(*command, *flags, "--log-level", "warning")
        if cores.worker is not None:  # before it has started threads, which inherit it
            os.sched_setaffinity(process.pid, cores.worker)
        try:
            described = await _described(address, process)
            rungs = tuple((rung.label, rung.quality) for rung in described.assets[0].ladder.rungs)
            told = {"engine": described.engine, "precision": described.precision, "asset": described.assets[0].name}
            yield RunningWorker(address, port, rungs, told)
        finally:
            await _stop(process)


async def _described(address: str, process: asyncio.subprocess.Process) -> worker_pb2.DescribeResponse:
    async with grpc.aio.insecure_channel(address) as channel:
        asked = worker_pb2_grpc.WorkerStub(channel).Describe(
            worker_pb2.DescribeRequest(), timeout=START_S, wait_for_ready=True
        )
        asking, ended = asyncio.ensure_future(_awaited(asked)), asyncio.ensure_future(process.wait())
        await asyncio.wait([asking, ended], return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            asking.cancel()
            raise RuntimeError(f"the worker ended with code {process.returncode} before it served")
        ended.cancel()
        return asking.result()


async def _awaited(call: grpc.aio.UnaryUnaryCall) -> worker_pb2.DescribeResponse:
    return await call


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            process.kill()
            await process.wait()


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def fetch(url: str) -> str:
    """What a page of metrics holds. Blocks."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())
