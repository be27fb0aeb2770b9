"""Scenes that come, go and change while the worker serves."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import scene_files
from splat_rig import TIMEOUT_S, worker

from headway.errors import from_rpc_error
from headway.v1 import splat_pb2, splat_pb2_grpc, worker_pb2, worker_pb2_grpc

LOAD_S = 80.0
LOOK_S = 0.02
STAGES = ["wait", "read", "order", "ladder", "calibrate", "ready"]
NEVER_S = 3600.0


def write(folder: Path, name: str, data: bytes) -> None:
    """Moved into place, as a careful copy is."""
    aside = folder / f".{name}.part"
    aside.write_bytes(data)
    aside.replace(folder / name)


class Client:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.splats = splat_pb2_grpc.SplatRenderingStub(channel)
        self.worker = worker_pb2_grpc.WorkerStub(channel)

    async def scenes(self) -> dict[str, splat_pb2.Scene]:
        listed = await self.splats.ListScenes(splat_pb2.ListScenesRequest(), timeout=TIMEOUT_S)
        return {scene.name: scene for scene in listed.scenes}

    async def rendered(self, scene: str) -> str:
        """The hash of the scene that a frame showed."""
        return (await self.render(scene)).served.asset_hash

    async def render(self, scene: str, timeout_s: float = TIMEOUT_S) -> splat_pb2.RenderResponse:
        request = splat_pb2.RenderRequest(scene=scene, options=splat_pb2.FrameOptions(width=48, height=32))
        return await self.splats.Render(request, timeout=timeout_s)

    def load(self, scene: str, *, pin: bool = False):
        return self.splats.LoadScene(splat_pb2.LoadSceneRequest(scene=scene, pin=pin), timeout=LOAD_S)

    async def loaded(self, scene: str, *, pin: bool = False) -> list[splat_pb2.LoadSceneResponse]:
        return [message async for message in self.load(scene, pin=pin)]

    async def unload(self, scene: str) -> None:
        await self.splats.UnloadScene(splat_pb2.UnloadSceneRequest(scene=scene), timeout=TIMEOUT_S)

    async def until(self, condition) -> dict[str, splat_pb2.Scene]:
        async with asyncio.timeout(LOAD_S):
            while not condition(scenes := await self.scenes()):  # noqa: ASYNC110  it sets no event here
                await asyncio.sleep(LOOK_S)
        return scenes


async def failure(call):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return from_rpc_error(raised.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "scenes"
    made.mkdir()
    write(made, "first.ply", scene_files.small(0))
    return made


@pytest.fixture
async def client(folder, calibrations) -> AsyncIterator[Client]:
    async with worker(cache_dir=calibrations, scenes=folder, scene_poll_s=NEVER_S) as channel:
        yield Client(channel)


async def test_a_load_streams_its_stages_and_the_scene_can_be_asked_for_at_once(client, folder):
    write(folder, "second.ply", scene_files.small(11))  # which no other test ranks: the order is measured here
    messages = await client.loaded("second", pin=True)
    stages = [STAGES.index(message.stage) for message in messages]
    shares = [message.progress for message in messages]
    assert stages == sorted(stages) and {STAGES[stage] for stage in stages} >= {"read", "order", "ladder", "ready"}
    assert shares == sorted(shares) and shares[-1] == 1.0
    scene = messages[-1].scene
    assert (scene.name, scene.gaussians, scene.pinned, scene.evicted) == ("second", 850, True, False)
    assert await client.rendered("second") == await client.rendered(scene.hash) == scene.hash
    described = await client.worker.Describe(worker_pb2.DescribeRequest(), timeout=TIMEOUT_S)
    assert ([asset.name for asset in described.assets], described.assets_version) == (["first", "second"], 1)
    again = await client.loaded("second")
    assert ([message.stage for message in again], again[-1].scene.pinned) == (["ready"], False)


async def test_a_scene_is_swapped_without_a_dropped_request(client, folder):
    before = (await client.scenes())["first"].hash
    answers: list[splat_pb2.RenderResponse] = []
    stop = asyncio.Event()

    async def keep_asking() -> None:
        while not stop.is_set():
            answers.append(await client.render("first", LOAD_S))
            await asyncio.sleep(LOOK_S)

    askers = [asyncio.create_task(keep_asking()) for _ in range(2)]
    write(folder, "first.ply", scene_files.small(2))
    scene = (await client.loaded("first"))[-1].scene
    answers.append(await client.render("first"))
    stop.set()
    await asyncio.gather(*askers)
    assert {answer.served.asset_hash for answer in answers} == {before, scene.hash}
    assert answers[0].served.asset_hash == before != scene.hash == answers[-1].served.asset_hash
    assert (await failure(client.render(before))).reason_name == "NOT_FOUND"


async def test_frames_are_served_while_a_scene_loads(client, folder):
    write(folder, "second.ply", scene_files.small(9))
    stages, first = [], (await client.scenes())["first"].hash
    async for message in client.load("second"):
        if message.stage == "order" and "order" not in stages:
            for _ in range(2):
                assert await client.rendered("first") == first
            assert list(await client.scenes()) == ["first"]
        stages.append(message.stage)
    assert stages[-1] == "ready"


async def test_a_load_goes_on_when_its_caller_leaves_and_others_join_it(client, folder):
    write(folder, "second.ply", scene_files.small(4))
    load = client.load("second")
    await load.read()
    load.cancel()
    assert (await client.loaded("second"))[-1].scene.gaussians == 500


async def test_a_scene_is_out_of_service_until_it_is_loaded_again(client, folder):
    await client.unload("first")
    assert await client.scenes() == {}
    assert (await failure(client.render("first"))).reason_name == "NOT_FOUND"
    assert (await failure(client.unload("first"))).reason_name == "NOT_FOUND"
    assert list((await failure(client.unload(""))).violations) == ["scene"]
    await client.loaded("first")
    assert await client.rendered("") == (await client.scenes())["first"].hash


async def test_names_are_names_and_damaged_files_leave_what_is_served_alone(client, folder):
    before = await client.rendered("first")
    for name in ("../scenes/first", str(folder / "first"), "first.ply", "", "card.json"):
        error = await failure(client.load(name).read())
        assert (error.reason_name, error.metadata["known"]) == ("NOT_FOUND", "first")
    (folder / "first.ply").write_bytes((folder / "first.ply").read_bytes()[:-1])
    error = await failure(client.loaded("first"))
    assert list(error.violations) == ["element vertex"]
    assert await client.rendered("first") == before


async def test_files_are_picked_up_swapped_and_dropped(folder, calibrations):
    async with worker(cache_dir=calibrations, scenes=folder, scene_poll_s=0.05) as channel:
        client = Client(channel)
        write(folder, "second.ply", scene_files.small(1))
        (folder / "third.ply").write_bytes(b"ply\nno scene")
        await client.until(lambda scenes: list(scenes) == ["first", "second"])
        write(folder, "second.ply", scene_files.small(2))
        await client.until(lambda scenes: scenes["second"].gaussians == 400)
        await client.unload("first")
        (folder / "second.ply").unlink()
        assert await client.until(lambda scenes: "second" not in scenes) == {}
        write(folder, "first.ply", scene_files.small(0))
        await client.until(lambda scenes: "first" in scenes)


async def test_what_has_no_room_is_known_and_loads_when_it_is_asked_for(folder, calibrations):
    """Of the larger scenes two fit into the megabyte; the last is evicted again at the start."""
    for seed, name in enumerate(("large-a", "large-b", "large-c")):
        write(folder, f"{name}.ply", scene_files.ply_bytes(scene_files.gaussians(1900, 3, seed)))
    async with worker(cache_dir=calibrations, scenes=folder, scene_poll_s=NEVER_S, scene_memory_mb=1) as channel:
        client = Client(channel)
        start = await client.scenes()
        evicted = [name for name, scene in start.items() if scene.evicted]
        assert list(start) == ["first", "large-a", "large-b", "large-c"]
        assert evicted == ["large-c"]
        assert await client.rendered("large-c") == start["large-c"].hash
        after = await client.scenes()
        assert sum(scene.memory_bytes for scene in after.values() if not scene.evicted) <= 10**6
        assert [name for name, scene in after.items() if scene.evicted] == ["large-b"]
        for name in ("large-a", "large-c"):
            await client.loaded(name, pin=True)
        refused = await failure(client.render("large-b"))
        assert (refused.reason_name, refused.retry_after_s) == ("SHED", None)
        assert await client.rendered("large-a") == start["large-a"].hash
