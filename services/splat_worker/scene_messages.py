"""Scenes and loads as the contract's messages."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from headway.deadline import Clock
from headway.v1 import splat_pb2
from services.splat_worker.library import Entry
from services.splat_worker.scenes import Scenes
from services.splat_worker.views import Pose, Vector

READY = "ready"


def scene_message(entry: Entry) -> splat_pb2.Scene:
    """What ListScenes tells of a scene."""
    facts = entry.facts
    return splat_pb2.Scene(
        name=facts.name,
        hash=facts.hash,
        gaussians=facts.gaussians,
        sh_degree=facts.sh_degree,
        default_camera=_look_at(facts.home),
        ladder=facts.ladder.to_proto(),
        dropped=facts.dropped,
        memory_bytes=facts.memory_bytes,
        pinned=entry.pinned,
        evicted=entry.loaded is None,
    )


async def load_messages(
    scenes: Scenes, request: splat_pb2.LoadSceneRequest, clock: Clock
) -> AsyncGenerator[splat_pb2.LoadSceneResponse, None]:
    """The answer of LoadScene; raises as `Scenes.load`."""
    start_s = clock()

    def told(stage: str, share: float) -> splat_pb2.LoadSceneResponse:
        response = splat_pb2.LoadSceneResponse(stage=stage, progress=share)
        response.elapsed.FromNanoseconds(round((clock() - start_s) * 1e9))
        return response

    async with aclosing(scenes.load(request.scene, pin=request.pin)) as steps:
        async for step in steps:
            yield told(step.stage, step.share)
    last = told(READY, 1.0)
    last.scene.CopyFrom(scene_message(scenes.entry(request.scene)))
    yield last


def _look_at(pose: Pose) -> splat_pb2.LookAtCamera:
    return splat_pb2.LookAtCamera(
        position=_vector(pose.position),
        target=_vector(pose.target),
        up=_vector(pose.up),
        field_of_view_deg=pose.field_of_view_deg,
    )


def _vector(vector: Vector) -> splat_pb2.Vector3:
    return splat_pb2.Vector3(x=vector[0], y=vector[1], z=vector[2])
