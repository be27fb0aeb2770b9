"""Scenes loaded and unloaded through a router, on two real workers with folders of their own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import scene_files
from typer.testing import CliRunner

from headway.cli.scene import app
from headway.errors import from_rpc_error
from headway.server import Build, serve
from headway.telemetry import Span
from headway.v1 import router_pb2, router_pb2_grpc, splat_pb2, splat_pb2_grpc
from services.router.config import RouterConfig
from services.router.main import build as build_router
from services.splat_worker.config import SplatWorkerConfig
from services.splat_worker.main import build as build_worker

TIMEOUT_S = 80.0
LOOK_S = 0.02


@asynccontextmanager
async def running(config: Any, name: str, build: Build) -> AsyncIterator[str]:
    stop, port = asyncio.Event(), asyncio.get_running_loop().create_future()
    served = serve(config, name, build, span=Span.WORKER_CALL, ready=port.set_result, until=stop.wait)
    task = asyncio.create_task(served)
    await asyncio.wait([task, port], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    try:
        yield f"127.0.0.1:{port.result()}"
    finally:
        stop.set()
        await asyncio.wait_for(task, 20)


def write(folder: Path, name: str, number: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(scene_files.small(number))


@pytest.fixture
async def mesh(tmp_path, calibrations) -> AsyncIterator[tuple[Any, list[Any], str]]:
    """The router's stub, those of the workers, with the folders `a` and `b`, and the router's address."""
    async with AsyncExitStack() as stack:
        addresses = []
        for name in "ab":
            write(tmp_path / name, "first.ply", 0)
            config = SplatWorkerConfig(
                listen="127.0.0.1:0", metrics_port=None, threads=1, drain_s=1, scenes=tmp_path / name,
                cache_dir=calibrations, scene_poll_s=3600,
            )  # fmt: skip
            addresses.append(
                await stack.enter_async_context(running(config, "splat-worker", partial(build_worker, config)))
            )
        workers = ",".join(f"splat={address}" for address in addresses)
        config = RouterConfig(listen="127.0.0.1:0", workers=workers, metrics_port=None, drain_s=1)
        address = await stack.enter_async_context(running(config, "router", partial(build_router, config)))
        channels = [await stack.enter_async_context(grpc.aio.insecure_channel(each)) for each in (address, *addresses)]
        router = router_pb2_grpc.RouterStub(channels[0])
        async with asyncio.timeout(TIMEOUT_S):
            while not await healthy(router):  # noqa: ASYNC110  it sets no event here
                await asyncio.sleep(LOOK_S)
        stubs = [splat_pb2_grpc.SplatRenderingStub(channel) for channel in channels]
        yield stubs[0], stubs[1:], address


async def healthy(router: Any) -> bool:
    workers = (await router.ListWorkers(router_pb2.ListWorkersRequest(), timeout=5)).workers
    return [worker.health for worker in workers] == [router_pb2.WORKER_HEALTH_HEALTHY] * 2


async def load(stub: Any, scene: str) -> list[splat_pb2.LoadSceneResponse]:
    return [part async for part in stub.LoadScene(splat_pb2.LoadSceneRequest(scene=scene), timeout=TIMEOUT_S)]


async def rendered(stub: Any, scene: str) -> str:
    """The hash of the scene that a frame showed."""
    request = splat_pb2.RenderRequest(scene=scene, options=splat_pb2.FrameOptions(width=32, height=32))
    return (await stub.Render(request, timeout=TIMEOUT_S)).served.asset_hash


async def names(stub: Any) -> list[str]:
    return [scene.name for scene in (await stub.ListScenes(splat_pb2.ListScenesRequest(), timeout=TIMEOUT_S)).scenes]


async def failure(call: Awaitable[Any]) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return from_rpc_error(raised.value)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not await condition():  # noqa: ASYNC110  it sets no event here
            await asyncio.sleep(LOOK_S)


async def test_a_scene_is_loaded_wherever_its_file_is(mesh, tmp_path) -> None:
    router, workers, _ = mesh
    write(tmp_path / "b", "second.ply", 1)
    parts = await load(router, "second")
    shares = [part.progress for part in parts]
    assert shares == sorted(shares)
    assert [part.HasField("scene") for part in parts] == [False] * (len(parts) - 1) + [True]
    assert await rendered(router, "second") == parts[-1].scene.hash
    assert [await names(worker) for worker in workers] == [["first"], ["first", "second"]]
    for folder in "ab":
        write(tmp_path / folder, "third.ply", 2)
    await load(router, "third")
    assert [await names(worker) for worker in workers] == [["first", "third"], ["first", "second", "third"]]
    await router.UnloadScene(splat_pb2.UnloadSceneRequest(scene="third"), timeout=TIMEOUT_S)
    assert (await failure(rendered(router, "third"))).reason_name == "NOT_FOUND"
    assert [await names(worker) for worker in workers] == [["first"], ["first", "second"]]


async def test_what_no_worker_can_do_is_refused_with_the_workers_own_reason(mesh, tmp_path) -> None:
    router, _, _ = mesh
    write(tmp_path / "b", "second.ply", 1)
    damaged = tmp_path / "b" / "second.ply"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert list((await failure(load(router, "second"))).violations) == ["element vertex"]
    unload = splat_pb2.UnloadSceneRequest(scene="nothing")
    for call in (load(router, "nothing"), router.UnloadScene(unload, timeout=TIMEOUT_S)):
        assert (await failure(call)).reason_name == "NOT_FOUND"


async def test_the_router_notices_what_was_loaded_behind_its_back(mesh, tmp_path) -> None:
    router, workers, _ = mesh
    write(tmp_path / "a", "first.ply", 3)
    scene = (await load(workers[0], "first"))[-1].scene

    async def knows() -> bool:
        try:
            return await rendered(router, scene.hash) == scene.hash
        except grpc.aio.AioRpcError as error:
            if from_rpc_error(error).reason_name != "NOT_FOUND":
                raise
            return False

    await until(knows)


async def test_the_command_line_loads_lists_and_unloads(mesh, tmp_path) -> None:
    _, _, address = mesh
    write(tmp_path / "a", "second.ply", 1)

    async def run(*arguments: str) -> tuple[int, str]:
        done = await asyncio.to_thread(CliRunner().invoke, app, [*arguments, "--address", address])
        return done.exit_code, done.output

    code, said = await run("load", "second", "--pin")
    assert (code, said.startswith("second is loaded: 350 gaussians")) == (0, True)
    code, said = await run("list")
    assert code == 0
    assert [line.split()[0] for line in said.splitlines() if "pinned" in line or "loaded" in line] == [
        "first",
        "second",
    ]
    assert await run("unload", "second") == (0, "second is out of service\n")
    code, said = await run("unload", "second")
    assert (code, said.startswith("NOT_FOUND")) == (2, True)
