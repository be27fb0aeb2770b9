"""Which processes make a mesh, how each is started, and how one knows that it is ready. Decides; starts nothing."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import headway
from headway.channels import OPEN, Credentials
from headway.local_redis import server_command

PARTS = ("redis", "device-arbiter", "prefix-cache", "text-worker", "dit-worker", "splat-worker", "router")
"""In the order of starting; they stop in the opposite one."""

KINDS = ("text", "dit", "splat")

# glibc gives memory back to the system, and faults it in again, for every large message; this stops that.
_MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TOP_PAD_": "16777216",
}
_ROUTER_ONLY = ("HEADWAY_API_KEYS", "HEADWAY_TLS_CERT", "HEADWAY_TLS_KEY", "HEADWAY_TLS_CLIENT_CA", "HEADWAY_CONFIG")


@dataclass(frozen=True)
class GrpcReady:
    """Ready when the health service at `address` says SERVING."""

    address: str
    credentials: Credentials = OPEN
    server_name: str | None = None
    """Whose certificate the server shows, where that is not the address's."""


@dataclass(frozen=True)
class RouterReady:
    """Ready when the router at `address` sees its workers healthy, or wants a key before it tells."""

    address: str
    spare: int = 0
    """How many of them need not run."""


@dataclass(frozen=True)
class RedisReady:
    """Ready when it answers a ping."""

    url: str


@dataclass(frozen=True)
class AcceptReady:
    """Ready when something accepts connections at `address`: HOST:PORT or unix:PATH."""

    address: str


Ready = GrpcReady | RouterReady | RedisReady | AcceptReady


@dataclass(frozen=True)
class Part:
    """One process of a mesh."""

    name: str
    command: tuple[str, ...]
    ready: Ready
    env: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class MeshSettings:
    """What `headway up` was told."""

    listen: str
    """Where the router listens."""
    models: Path
    sockets: Path
    """The folder of the parts' sockets; private to the user."""
    redis_url: str | None = None
    """A Redis that runs already; None starts one."""
    redis_server: Path | None = None
    """The server's binary, when one is to be started."""
    least_workers: int = 1
    """Of each kind; they run all the time."""
    most_workers: int = 1
    """Of each kind, with those that come and go."""


def default_models() -> Path:
    """The checkout's `models/`, else the assets inside the installed package."""
    package = Path(headway.__file__).parent
    checkout = package.parent / "models"
    return checkout if checkout.is_dir() else package / "assets"


def parts_of(settings: MeshSettings, environment: Mapping[str, str] = os.environ) -> tuple[Part, ...]:
    """The processes, in the order of `PARTS`. All but the router listen on sockets in the run folder only."""
    inner = {**{name: value for name, value in environment.items() if name not in _ROUTER_ONLY}, **_MALLOC}
    parts = [_redis(settings, inner)] if settings.redis_url is None else []
    return (
        *parts,
        _arbiter(settings, inner),
        _service("prefix-cache", settings, inner, "--redis", _redis_url(settings)),
        *(_worker(kind, number, settings, inner) for kind in KINDS for number in range(1, settings.least_workers + 1)),
        _router(settings, {**environment, **_MALLOC}),
    )


def spare_workers(
    settings: MeshSettings, environment: Mapping[str, str] = os.environ
) -> Mapping[str, tuple[Part, ...]]:
    """The workers of each kind that run only while they are wanted, in the order in which they come."""
    inner = {**{name: value for name, value in environment.items() if name not in _ROUTER_ONLY}, **_MALLOC}
    numbers = range(settings.least_workers + 1, settings.most_workers + 1)
    return {kind: tuple(_worker(kind, number, settings, inner) for number in numbers) for kind in KINDS}


def _redis(settings: MeshSettings, env: Mapping[str, str]) -> Part:
    socket = settings.sockets / "redis.sock"
    assert settings.redis_server is not None
    return Part("redis", tuple(server_command(settings.redis_server, socket)), RedisReady(f"unix://{socket}"), env)


def _arbiter(settings: MeshSettings, env: Mapping[str, str]) -> Part:
    socket = settings.sockets / "device.sock"
    command = (sys.executable, "-m", "headway.device", "--socket", str(socket))
    return Part("device-arbiter", command, AcceptReady(f"unix:{socket}"), env)


def _cache_flags(settings: MeshSettings) -> tuple[str, ...]:
    return ("--prefix-cache", _address(settings, "prefix-cache"))


def _kv_store_flags(settings: MeshSettings) -> tuple[str, ...]:
    return ("--kv-store", _redis_url(settings))


def _redis_url(settings: MeshSettings) -> str:
    return settings.redis_url or f"unix://{settings.sockets / 'redis.sock'}"


def _worker(kind: str, number: int, settings: MeshSettings, env: Mapping[str, str]) -> Part:
    device = ("--device-socket", str(settings.sockets / "device.sock"))
    match kind:
        case "text":
            flags = ("--model", str(settings.models / "text"), *_cache_flags(settings), *_kv_store_flags(settings))
        case "dit":
            flags = ("--model", str(settings.models / "dit-digits"))
        case _:
            flags = ("--scenes", str(settings.models / "scenes"))
    return _service(f"{kind}-worker", settings, env, *flags, *device, name=_worker_name(kind, number))


def _worker_name(kind: str, number: int) -> str:
    return f"{kind}-worker" if number == 1 else f"{kind}-{number}-worker"


def _service(
    program: str, settings: MeshSettings, env: Mapping[str, str], *flags: str, name: str | None = None
) -> Part:
    """`name`: of the part, where several run the same program."""
    address = _address(settings, name or program)
    command = (*_module(program), "--listen", address, "--metrics-port", "0", *flags)
    return Part(name or program, command, GrpcReady(address), env)


def _router(settings: MeshSettings, env: Mapping[str, str]) -> Part:
    numbers = range(1, settings.most_workers + 1)
    names = [(kind, _worker_name(kind, number)) for kind in KINDS for number in numbers]
    workers = ",".join(f"{kind}={_address(settings, name)}" for kind, name in names)
    spare = len(KINDS) * (settings.most_workers - settings.least_workers)
    flags = ("--workers", workers, *_cache_flags(settings))
    command = (*_module("router"), "--listen", settings.listen, "--metrics-port", "0", *flags)
    address = reachable(settings.listen)
    # With TLS its certificate is for others to check; that it accepts is enough for us.
    ready = AcceptReady(address) if env.get("HEADWAY_TLS_CERT") else RouterReady(address, spare)
    return Part("router", command, ready, env)


def reachable(listen: str) -> str:
    """Where to call, on this host, what listens on all addresses."""
    host, _, port = listen.rpartition(":")
    return f"{ {'0.0.0.0': '127.0.0.1', '[::]': '[::1]'}.get(host, host) }:{port}"


def _module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"services.{name.replace('-', '_')}.main")


def _address(settings: MeshSettings, name: str) -> str:
    return f"unix:{settings.sockets / f'{name}.sock'}"
