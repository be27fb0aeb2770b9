"""The renderer for GPUs behind scheduler, engine and service, with gsplat's torch code in place of its CUDA kernels."""

import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import scene_files
import torch
from splat_rig import TIMEOUT_S, worker
from test_splat_scheduler import LOADED, SAME, SCENE, Clock, flat, frame, plan

from benchmarks.gsplat_reference import without_cuda
from headway.calibration import Curves
from headway.cost import Cost, StepCurve
from headway.device import DeviceClient
from headway.errors import BadInput
from headway.ticket import Finished
from headway.v1 import common_pb2, splat_pb2, splat_pb2_grpc, worker_pb2, worker_pb2_grpc
from services.splat_worker import costs, gsplat_rasterizer
from services.splat_worker.camera import look_at
from services.splat_worker.costs import SceneCosts, scene_costs
from services.splat_worker.cpu_renderer import CpuRenderer
from services.splat_worker.encode import Encoding
from services.splat_worker.engine import SplatEngine
from services.splat_worker.folder import SceneFile
from services.splat_worker.frame import Frame, Gang, Shot
from services.splat_worker.gsplat_renderer import GANG_SIZES, GsplatRenderer, likeness_db
from services.splat_worker.library import Library
from services.splat_worker.scheduler import SplatScheduler

CPU = torch.device("cpu")
# One frame alone takes 10 ms; two, four and eight at once take 16, 24 and 40.
GANGS = StepCurve(((1, Cost(10.0)), (2, Cost(16.0)), (4, Cost(24.0)), (8, Cost(40.0))))
COSTS = SceneCosts(
    render={"top": flat(100.0), "half": flat(40.0), "least": flat(10.0)},
    encode={encoding: flat(5.0) for encoding in Encoding},
    blend=None,
    gang=GANGS,
)
SCHEDULER = SplatScheduler({LOADED.hash: COSTS}, rung_quantile=0.9, admission_quantile=0.999, overhead_ms=1.0)
IN_STAGES = replace(SCHEDULER, costs={LOADED.hash: replace(COSTS, blend=flat(1.0))})
HALF = common_pb2.ServiceLevel(exact="half")


@pytest.fixture(autouse=True)
def torch_kernels() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with without_cuda():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def renderer() -> Iterator[GsplatRenderer]:
    made = GsplatRenderer(CPU, 2)
    yield made
    made.close()


def works(renderer: GsplatRenderer, count: int, level: common_pb2.ServiceLevel | None = None) -> list[Frame]:
    """Frames of one scene from different places, over different backgrounds."""
    placed, made = replace(LOADED, placed=renderer.place(SCENE)), [frame(level=level) for _ in range(count)]
    for index, work in enumerate(made):
        camera = look_at((index, 1, 6 - index), (0, 0, 0), (0, 1, 0), 50, 64, 64)
        work.spec = replace(work.spec, scene=placed, camera=camera, background=(0.1 * index, 0.0, 0.5))
    return made


def step(frames: list[Frame]) -> Shot | Gang:
    batch = SCHEDULER.next_batch(plan(*frames), 0.0, SAME)
    assert batch is not None
    return batch


def taken(
    renderer: GsplatRenderer | CpuRenderer, batch: Shot | Gang, scheduler: SplatScheduler = SCHEDULER
) -> list[object]:
    engine = SplatEngine(renderer, scheduler, Clock(0.001))
    return [event for _, event in engine.apply(batch, engine.run(batch), 1.0)]


def bytes_of(events: list[object]) -> list[bytes]:
    assert all(isinstance(event, Finished) for event in events)
    return [event.result.data for event in events]


@pytest.mark.parametrize("level", [None, HALF], ids=["top", "half"])
def test_a_gang_is_one_launch_and_its_frames_are_what_they_are_alone(
    level: common_pb2.ServiceLevel | None, renderer: GsplatRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gsplat

    launched, blend = [], gsplat.rasterize_to_pixels

    def counted(means2d: torch.Tensor, *rest: object, **more: object) -> object:
        launched.append(len(means2d))
        return blend(means2d, *rest, **more)

    monkeypatch.setattr(gsplat, "rasterize_to_pixels", counted)
    batch = step(works(renderer, 4, level))
    assert isinstance(batch, Gang)
    together = bytes_of(taken(renderer, batch))
    assert launched == [4]
    assert len(set(together)) == 4
    assert together == [bytes_of(taken(renderer, shot))[0] for shot in batch.shots]


def test_frames_are_those_of_the_cpu_at_every_rung(renderer: GsplatRenderer) -> None:
    on_cpu = CpuRenderer(1)
    for label in ("top", "half", "least"):
        (work,) = works(renderer, 1, common_pb2.ServiceLevel(exact=label))
        batch = step([work])
        ours, theirs = taken(renderer, batch)[0].result, taken(on_cpu, batch, IN_STAGES)[0].result
        assert replace(ours, data=b"") == replace(theirs, data=b"")
        difference = np.frombuffer(ours.data, np.uint8).astype(int) - np.frombuffer(theirs.data, np.uint8)
        assert np.abs(difference).max() <= 1
    on_cpu.close()


def test_a_gang_is_as_large_as_is_alike_was_measured_and_is_in_time(renderer: GsplatRenderer) -> None:
    def size(frames: list[Frame]) -> int:
        return len(step(frames).works)

    assert [size(works(renderer, count)) for count in (1, 2, 3, 4, 7, 8, 9)] == [1, 2, 2, 4, 4, 8, 8]
    other = works(renderer, 4)
    other[2].spec = replace(other[2].spec, antialiased=True)
    assert size(other) == 2
    soon = works(renderer, 8, common_pb2.ServiceLevel(exact="top"))
    for work in soon:  # eight take 8 * 105 * 0.5 = 420 ms, four take 4 * 105 * 0.6 = 252 ms
        work.ticket.target_s = 0.3
    assert size(soon) == 4


def test_a_gang_that_pairs_too_much_is_drawn_one_by_one(
    renderer: GsplatRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = step(works(renderer, 4))
    together = bytes_of(taken(renderer, batch))
    alone = [renderer_pairs(shot) for shot in batch.shots]
    monkeypatch.setattr(gsplat_rasterizer, "MAX_PAIRS", max(alone))
    assert bytes_of(taken(renderer, batch)) == together
    monkeypatch.setattr(gsplat_rasterizer, "MAX_PAIRS", max(alone) - 1)
    events = taken(renderer, batch)
    assert [isinstance(event, BadInput) for event in events] == [pairs == max(alone) for pairs in alone]


def renderer_pairs(shot: Shot) -> int:
    spec = shot.works[0].spec
    view = gsplat_rasterizer.View(spec.camera, spec.background)
    return gsplat_rasterizer.render(spec.scene.placed, [view])[0].pairs


def measured(renderer: GsplatRenderer, monkeypatch: pytest.MonkeyPatch) -> Curves:
    monkeypatch.setattr(costs, "SIZES_PX", (16, 32))
    (work,) = works(renderer, 1)
    return costs.measure(work.spec.scene, renderer, DeviceClient(None))


def test_costs_are_measured_with_gangs_and_without_stages(
    renderer: GsplatRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = scene_costs(measured(renderer, monkeypatch))
    assert found.blend is None
    assert found.gang_sizes == tuple(reversed(GANG_SIZES))
    assert set(found.render) == {"top", "half", "least"}
    assert all(cost.mean_ms > 0 for _, cost in found.gang.points)


def test_a_scene_counts_twice_and_leaves_the_device_when_it_is_evicted(renderer: GsplatRenderer) -> None:
    library = Library(3 * SCENE.memory_bytes)
    (work,) = works(renderer, 1)
    entry = library.take(work.spec.scene, SceneFile("test", Path("test"), (0, 0, 0)), 1.0)
    assert entry.facts.memory_bytes == library.loaded_bytes == SCENE.memory_bytes + renderer.beside_bytes(SCENE)
    on_device = weakref.ref(work.spec.scene.placed)
    library.make_room(2 * SCENE.memory_bytes, "other")
    assert entry.loaded is None
    assert on_device() is not None  # a frame in flight still draws it
    del work
    assert on_device() is None


def test_the_kernels_are_held_against_our_own() -> None:
    assert likeness_db(CPU) > 80


async def test_a_worker_serves_through_it(calibrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.splat_worker.main.renderers", lambda *_: lambda: GsplatRenderer(CPU, 1))
    monkeypatch.setattr(costs, "SIZES_PX", (16, 32))
    (tmp_path / "small.ply").write_bytes(scene_files.ply_bytes(scene_files.gaussians(350, 0, seed=77)))
    async with worker(scenes=tmp_path, cache_dir=calibrations) as channel:
        described = await worker_pb2_grpc.WorkerStub(channel).Describe(worker_pb2.DescribeRequest(), timeout=TIMEOUT_S)
        assert (described.engine, described.device) == ("gsplat-cpu", "cpu")
        stub = splat_pb2_grpc.SplatRenderingStub(channel)
        (scene,) = (await stub.ListScenes(splat_pb2.ListScenesRequest(), timeout=TIMEOUT_S)).scenes
        assert scene.memory_bytes == 2 * 350 * 4 * (3 + 4 + 3 + 1 + 3)
        answers = [await ask(stub) for _ in range(2)]
        assert answers[0].frame == answers[1].frame
        assert answers[0].served.rung.quality == 1.0
        assert [stage.stage for stage in answers[0].served.stages] == ["queue", "render", "encode"]


async def ask(stub: splat_pb2_grpc.SplatRenderingStub) -> splat_pb2.RenderResponse:
    request = splat_pb2.RenderRequest(options=splat_pb2.FrameOptions(width=48, height=32))
    call: grpc.aio.UnaryUnaryCall = stub.Render(request, timeout=TIMEOUT_S)
    return await call
