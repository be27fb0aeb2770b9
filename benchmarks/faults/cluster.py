"""The processes of the chaos run, and the proxies between them.

Two devices, each with an arbiter of its own and one thread: a worker that is stopped in the middle of a step holds its
device, as a stuck kernel would, so that nothing on that device can take over for it.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.proxy import Proxy
from headway.cli.readiness import is_ready
from headway.cli.supervisor import Supervisor
from headway.cli.topology import AcceptReady, GrpcReady, Part, Ready, RedisReady, RouterReady, default_models
from headway.local_redis import find_server, server_command

START_S, DRAIN_S = 180.0, 30.0
WHOLE_WITHIN_S = 90.0
_POLL_S = 0.2
DEVICES = ("a", "b")
ROUTERS = ("one-router", "two-router")
_MODULES = {"text": "text_worker", "dit": "dit_worker", "splat": "splat_worker"}


@dataclass(frozen=True)
class ChaosMesh:
    """A mesh that runs."""

    routers: tuple[str, ...]
    """Addresses."""
    workers: Mapping[str, str]
    """Their own addresses, by name."""
    proxies: Mapping[str, Proxy]
    """Between routers and each worker, and between routers and the cache; by the name of the part behind."""
    parts: tuple[Part, ...]
    supervisor: Supervisor

    async def whole(self, been: Callable[[], bool] = lambda: True) -> float:
        """Waits until every part is ready and both routers see all workers healthy. Returns the seconds it took.

        `been`: must hold too. Raises RuntimeError that names what is not.
        """
        began_s, late = time.perf_counter(), ["everything"]
        try:
            async with asyncio.timeout(WHOLE_WITHIN_S):
                while late or not been():
                    await asyncio.sleep(_POLL_S)
                    late = await self._not_ready()
        except TimeoutError:
            raise RuntimeError(
                f"after {WHOLE_WITHIN_S:g} s not ready: {', '.join(late) or 'what was killed'}"
            ) from None
        return time.perf_counter() - began_s

    async def _not_ready(self) -> list[str]:
        running = self.supervisor.pids
        ready = await asyncio.gather(*(is_ready(part.ready) for part in self.parts))
        found = zip(self.parts, ready, strict=True)
        return [part.name for part, is_up in found if not is_up or part.name not in running]


@asynccontextmanager
async def chaos_mesh(kinds: Sequence[str], say: Callable[[str, str], None]) -> AsyncIterator[ChaosMesh]:
    """Starts it and stops it after the block; a worker of each of `kinds` on each device."""
    with tempfile.TemporaryDirectory(prefix="headway-chaos-") as name:
        folder = Path(name)
        names = [f"{kind}-{device}-worker" for device in DEVICES for kind in kinds]
        workers = {name: f"unix:{folder / name}.sock" for name in names}
        cache, routers = f"unix:{folder}/cache.sock", tuple(f"unix:{folder / name}.sock" for name in ROUTERS)
        async with AsyncExitStack() as stack:
            proxies = {
                name: await stack.enter_async_context(Proxy(address))
                for name, address in {**workers, "prefix-cache": cache}.items()
            }
            parts = (*_stores(folder, cache), *_workers(folder, workers, proxies), *_routers(routers, proxies))
            supervisor = await stack.enter_async_context(_supervised(parts, say))
            yield ChaosMesh(routers, workers, proxies, parts, supervisor)


@asynccontextmanager
async def _supervised(parts: tuple[Part, ...], say: Callable[[str, str], None]) -> AsyncIterator[Supervisor]:
    stop, ready = asyncio.Event(), asyncio.Event()

    def changed(found: Supervisor) -> None:
        if found.ready:
            ready.set()

    supervisor = Supervisor(parts, say, start_s=START_S, drain_s=DRAIN_S, changed=changed)
    running = asyncio.create_task(supervisor.run(stop))
    waiting = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            yield supervisor
    finally:
        waiting.cancel()
        stop.set()
        await running


def _stores(folder: Path, cache: str) -> list[Part]:
    redis = folder / "redis.sock"
    url = f"unix://{redis}"
    command = tuple(server_command(find_server(), redis))
    arbiters = [
        Part(
            f"{device}-arbiter",
            (sys.executable, "-m", "headway.device", "--socket", str(folder / f"{device}.sock")),
            AcceptReady(f"unix:{folder / device}.sock"),
            _environment(),
        )
        for device in DEVICES
    ]
    return [
        Part("redis", command, RedisReady(url), _environment()),
        *arbiters,
        _service("prefix-cache", "prefix_cache", cache, GrpcReady(cache), "--redis", url),
    ]


def _workers(folder: Path, addresses: Mapping[str, str], proxies: Mapping[str, Proxy]) -> list[Part]:
    models, found = default_models(), list[Part]()
    for name, address in addresses.items():
        kind, device, _ = name.split("-")
        flags = {
            "text": ("--model", str(models / "text"), "--batch-invariant", "--prefix-cache", _cache(proxies)),
            "dit": ("--model", str(models / "dit-digits")),
            "splat": ("--scenes", str(models / "scenes")),
        }[kind]
        where = ("--device-socket", str(folder / f"{device}.sock"), "--device-id", device, "--threads", "1")
        found.append(_service(name, _MODULES[kind], address, GrpcReady(address), *flags, *where))
    return found


def _routers(addresses: Sequence[str], proxies: Mapping[str, Proxy]) -> list[Part]:
    behind = [(name.split("-")[0], proxy.address) for name, proxy in proxies.items() if name.endswith("-worker")]
    workers = ",".join(f"{kind}={address}" for kind, address in behind)
    flags = ("--workers", workers, "--prefix-cache", _cache(proxies))
    return [
        _service(name, "router", address, RouterReady(address), *flags)
        for name, address in zip(ROUTERS, addresses, strict=True)
    ]


def _cache(proxies: Mapping[str, Proxy]) -> str:
    return proxies["prefix-cache"].address


def _service(name: str, module: str, address: str, ready: Ready, *flags: str) -> Part:
    command = (sys.executable, "-m", f"services.{module}.main", "--listen", address, "--metrics-port", "off")
    return Part(name, (*command, "--drain-s", f"{DRAIN_S:g}", *flags), ready, _environment())


def _environment() -> dict[str, str]:
    return {**os.environ, "HEADWAY_LOG_LEVEL": "warning", "OMP_NUM_THREADS": "1"}
