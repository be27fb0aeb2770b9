"""The real Envoy with our file, its addresses alone put where a test has them."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headway.cli.up import with_free_port

FOLDER = Path(__file__).parents[3] / "deploy" / "envoy"
FILE = FOLDER / "envoy.yaml"
PICKING = FOLDER / "endpoint-picker.yaml"


def binary() -> str | None:
    """Where Envoy is: beside this Python, else on the path; None where it is not."""
    beside = Path(sys.executable).parent / "envoy"
    return str(beside) if beside.exists() else shutil.which("envoy")


@dataclass(frozen=True)
class Envoy:
    """A running one."""

    address: str
    log: Path

    async def access(self, lines: int) -> list[dict[str, Any]]:
        """The access log, once it has so many lines besides those of health checks."""
        while True:
            text = await asyncio.to_thread(self.log.read_text)
            parsed = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
            found = [entry for entry in parsed if "Health" not in entry.get("method", "")]
            if len(found) >= lines:
                return found
            await asyncio.sleep(0.05)  # written by another process, now and then


def configured(file: Path, listen: str, upstreams: list[str]) -> dict[str, Any]:
    """Our file with a listener at `listen` before `upstreams`."""
    config: dict[str, Any] = yaml.safe_load(file.read_text())
    config["admin"]["address"]["socket_address"]["port_value"] = 0
    listener, cluster = config["static_resources"]["listeners"][0], config["static_resources"]["clusters"][0]
    listener["address"]["socket_address"] = _socket(listen)
    ends = [{"endpoint": {"address": {"socket_address": _socket(address)}}} for address in upstreams]
    cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": ends}]
    return config


def _socket(address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    return {"address": host, "port_value": int(port)}


@asynccontextmanager
async def envoy(
    folder: Path, *upstreams: str, file: Path = FILE, change: Any = lambda config: None
) -> AsyncIterator[Envoy]:
    """Envoy before `upstreams` while the block runs; `change` mutates the configuration first."""
    program = binary()
    assert program is not None
    listen = with_free_port("127.0.0.1:0")
    path, log = folder / f"{listen.rpartition(':')[2]}.yaml", folder / f"{listen.rpartition(':')[2]}.log"
    config = configured(file, listen, list(upstreams))
    change(config)
    path.write_text(yaml.safe_dump(config))
    with log.open("wb") as out:
        flags = ("--concurrency", "1", "-l", "warning", "--disable-hot-restart", "--file-flush-interval-msec", "50")
        process = await asyncio.create_subprocess_exec(
            program,
            "-c",
            str(path),
            *flags,
            stdout=out,
            stderr=asyncio.subprocess.STDOUT,
            env={"PATH": os.environ["PATH"]},
        )
    try:
        await _until_it_serves(listen, process, log)
        yield Envoy(listen, log)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _until_it_serves(address: str, process: asyncio.subprocess.Process, log: Path) -> None:
    async with asyncio.timeout(30), grpc.aio.insecure_channel(address) as channel:
        while True:
            assert process.returncode is None, f"it ended; see {log}"
            try:
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
                return
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
