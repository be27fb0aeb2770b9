from pathlib import Path

import pytest

from headway.cli.topology import (
    PARTS,
    AcceptReady,
    MeshSettings,
    Part,
    RouterReady,
    default_models,
    parts_of,
    reachable,
    spare_workers,
)
from headway.cli.up import with_free_port

RUN = Path("/run/user/1/headway")


def _parts(listen: str = "127.0.0.1:50050", redis_url: str | None = None, **env: str) -> dict[str, Part]:
    settings = MeshSettings(listen, Path("/m"), RUN, redis_url, Path("/bin/redis-server"))
    return {part.name: part for part in parts_of(settings, env)}


def _flag(part: Part, name: str) -> str:
    return part.command[part.command.index(name) + 1]


def test_all_parts_in_order() -> None:
    assert tuple(_parts()) == PARTS
    assert tuple(_parts(redis_url="redis://h")) == PARTS[1:]


def test_only_the_router_listens_on_a_port() -> None:
    parts = _parts()
    listens = {name: _flag(part, "--listen") for name, part in parts.items() if "--listen" in part.command}
    assert listens.pop("router") == "127.0.0.1:50050"
    assert all(address == f"unix:{RUN / f'{name}.sock'}" for name, address in listens.items())
    assert _flag(parts["redis"], "--port") == "0"


def test_the_parts_know_each_other() -> None:
    parts = _parts()
    assert _flag(parts["router"], "--prefix-cache") == _flag(parts["prefix-cache"], "--listen")
    workers = dict(item.split("=") for item in _flag(parts["router"], "--workers").split(","))
    assert workers == {kind: _flag(parts[f"{kind}-worker"], "--listen") for kind in ("text", "splat", "dit")}
    sockets = {_flag(parts[f"{kind}-worker"], "--device-socket") for kind in ("text", "splat", "dit")}
    assert sockets == {_flag(parts["device-arbiter"], "--socket")}
    assert _flag(parts["prefix-cache"], "--redis") == f"unix://{_flag(parts['redis'], '--unixsocket')}"
    assert _flag(parts["text-worker"], "--kv-store") == _flag(parts["prefix-cache"], "--redis")
    elsewhere = _parts(redis_url="redis://h:1")
    assert _flag(elsewhere["prefix-cache"], "--redis") == _flag(elsewhere["text-worker"], "--kv-store") == "redis://h:1"


def test_spare_workers_are_known_to_the_router_before_they_run() -> None:
    settings = MeshSettings("127.0.0.1:1", Path("/m"), RUN, "redis://h", least_workers=2, most_workers=3)
    parts, spare = {part.name: part for part in parts_of(settings, {})}, spare_workers(settings, {})
    assert [name for name in parts if name.startswith("text")] == ["text-worker", "text-2-worker"]
    assert {kind: [part.name for part in extra] for kind, extra in spare.items()} == {
        kind: [f"{kind}-3-worker"] for kind in ("text", "dit", "splat")
    }
    known = [item.split("=")[1] for item in _flag(parts["router"], "--workers").split(",")]
    workers = [part for part in (*parts.values(), *(extra for (extra,) in spare.values())) if "worker" in part.name]
    assert sorted(known) == sorted(_flag(part, "--listen") for part in workers)
    assert len(set(known)) == 9
    assert parts["router"].ready == RouterReady("127.0.0.1:1", spare=3)


def test_identity_is_the_routers_alone() -> None:
    parts = _parts(HEADWAY_API_KEYS="/k", HEADWAY_TLS_CERT="/c", HEADWAY_LOG_LEVEL="debug")
    assert {name for name, part in parts.items() if "HEADWAY_API_KEYS" in part.env} == {"router"}
    assert all(part.env["HEADWAY_LOG_LEVEL"] == "debug" for part in parts.values())
    assert parts["router"].ready == AcceptReady("127.0.0.1:50050")
    assert "secret" not in repr(_parts(HEADWAY_SECRET="secret")["router"])


@pytest.mark.parametrize(
    ("listen", "address"), [("0.0.0.0:7", "127.0.0.1:7"), ("[::]:7", "[::1]:7"), ("host:7", "host:7")]
)
def test_what_listens_everywhere_is_called_here(listen: str, address: str) -> None:
    assert reachable(listen) == address
    assert _parts(listen)["router"].ready == RouterReady(address)


def test_a_free_port_is_picked_once() -> None:
    host, _, port = with_free_port("127.0.0.1:0").rpartition(":")
    assert (host, int(port) > 0) == ("127.0.0.1", True)
    assert with_free_port("0.0.0.0:7") == "0.0.0.0:7"


def test_the_checkouts_models_come_first() -> None:
    assert default_models() in {Path(__file__).parents[3] / "models", Path(__file__).parents[3] / "headway" / "assets"}
