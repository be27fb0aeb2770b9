"""`kill -9` of any one process: the rest go on, and the router says which worker is lost and when it is back."""

import os
import signal
import time
from collections.abc import Callable

import pytest
from conftest import Mesh

from headway.client import Headway
from headway.errors import HeadwayError
from headway.requests import images_request, render_request, text_request
from headway.v1 import common_pb2, router_pb2

KINDS = {
    "text-worker": common_pb2.KIND_TEXT,
    "dit-worker": common_pb2.KIND_IMAGE,
    "splat-worker": common_pb2.KIND_SPLAT,
}
BOUND_S = 60.0


def until(holds: Callable[[], bool], what: str) -> None:
    """Asks again and again, for at most a minute: this tests that it comes to pass; benchmarks/mesh.py times it."""
    end_s = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < end_s, what
        time.sleep(0.02)


def serves(client: Headway, kind: int) -> bool:
    """Whether one small request of this kind is served now."""
    try:
        if kind == common_pb2.KIND_TEXT:
            return bool(list(client.text(text_request("The", max_tokens=2), deadline_s=10)))
        if kind == common_pb2.KIND_IMAGE:
            return bool(list(client.images(images_request(1, count=1), deadline_s=10)))
        scene = client.scenes().scenes[0].name
        return bool(client.render(render_request(scene, width=32, height=32), deadline_s=10).frame.data)
    except HeadwayError:
        return False


def health(client: Headway, kind: int) -> int:
    (worker,) = [worker for worker in client.workers().workers if worker.kind == kind]
    return worker.health


def kill(mesh: Mesh, name: str) -> int:
    pid = mesh.state().pids[name]
    os.kill(pid, signal.SIGKILL)
    return pid


@pytest.mark.parametrize("name", KINDS)
def test_a_killed_worker_is_lost_and_comes_back_while_the_others_serve(mesh: Mesh, name: str) -> None:
    kind = KINDS[name]
    with Headway(mesh.address) as client:
        until(lambda: serves(client, kind), f"{name} serves at first")
        kill(mesh, name)
        until(lambda: health(client, kind) == router_pb2.WORKER_HEALTH_LOST, f"{name} is reported lost")
        for other in set(KINDS.values()) - {kind}:
            assert serves(client, other)
        until(lambda: health(client, kind) == router_pb2.WORKER_HEALTH_HEALTHY, f"{name} is in again")
        until(lambda: serves(client, kind), f"{name} serves again")


@pytest.mark.parametrize("name", ["redis", "prefix-cache", "device-arbiter"])
def test_without_cache_or_arbiter_every_kind_is_served(mesh: Mesh, name: str) -> None:
    with Headway(mesh.address) as client:
        for kind in KINDS.values():
            until(lambda kind=kind: serves(client, kind), "every kind serves at first")
        killed = kill(mesh, name)
        for kind in KINDS.values():
            assert serves(client, kind)
        until(lambda: mesh.state().pids.get(name) not in (None, killed), f"{name} was started again")
        for kind in KINDS.values():
            assert serves(client, kind)


def test_a_killed_router_comes_back_and_finds_its_workers(mesh: Mesh) -> None:
    killed = kill(mesh, "router")
    until(lambda: mesh.state().pids.get("router") not in (None, killed), "the router was started again")
    with Headway(mesh.address) as client:
        for kind in KINDS.values():
            until(lambda kind=kind: serves(client, kind), "every kind is served again")
