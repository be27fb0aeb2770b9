"""`headway.v1.SplatRendering`: validate, admit, answer with frames."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from headway.errors import Unimplemented
from headway.ticket import Finished
from headway.v1 import common_pb2, splat_pb2, splat_pb2_grpc
from headway.worker import WorkerRuntime
from services.splat_worker.encode import Encoding
from services.splat_worker.frame import EncodedFrame, Frame
from services.splat_worker.library import LoadedScene
from services.splat_worker.path_request import read_path
from services.splat_worker.progressive import Progressive, Refined
from services.splat_worker.request import read_request
from services.splat_worker.scheduler import SplatScheduler
from services.splat_worker.views import Pose, Vector
from services.splat_worker.walk import Skipped, Walk, Walked

PIXEL_FORMATS: Mapping[Encoding, common_pb2.PixelFormat] = {
    Encoding.PNG: common_pb2.PIXEL_FORMAT_PNG,
    Encoding.JPEG: common_pb2.PIXEL_FORMAT_JPEG,
    Encoding.WEBP: common_pb2.PIXEL_FORMAT_WEBP,
    Encoding.RAW: common_pb2.PIXEL_FORMAT_RAW,
}


_MOST_VIDEO_BYTES = 1 << 20
"""Of a video in one message; a second of large frames may be more than a message holds."""


class SplatServicer(splat_pb2_grpc.SplatRenderingServicer):
    """The scenes of one worker behind one engine loop."""

    def __init__(self, runtime: WorkerRuntime, scenes: Sequence[LoadedScene], scheduler: SplatScheduler) -> None:
        self._runtime, self._scenes = runtime, {scene.hash: scene for scene in scenes}
        self._scheduler = scheduler

    async def Render(self, request: splat_pb2.RenderRequest, context: Any) -> splat_pb2.RenderResponse:
        budget = self._runtime.budget(context)
        asset = self._runtime.identity.find("scene", request.scene)
        spec = read_request(request, self._scenes[asset.hash], self._runtime.config.max_message_mib << 20)
        work = Frame(self._runtime.ticket(budget, request.service_level, asset.ladder), spec)
        response = splat_pb2.RenderResponse()
        async with aclosing(self._runtime.events(work)) as events:
            async for event in events:
                if isinstance(event, common_pb2.Plan):
                    response.plan.CopyFrom(event)
                elif isinstance(event, Finished):
                    response.frame.CopyFrom(_frame(event.result, spec.encoding))
        response.served.CopyFrom(self._runtime.served(work.ticket, asset))
        return response

    async def ListScenes(self, request: splat_pb2.ListScenesRequest, context: Any) -> splat_pb2.ListScenesResponse:
        return splat_pb2.ListScenesResponse(scenes=[_scene(scene) for scene in self._scenes.values()])

    async def RenderProgressive(
        self, request: splat_pb2.RenderRequest, context: Any
    ) -> AsyncIterator[splat_pb2.RenderProgressiveResponse]:
        budget = self._runtime.budget(context)
        asset = self._runtime.identity.find("scene", request.scene)
        spec = read_request(request, self._scenes[asset.hash], self._runtime.config.max_message_mib << 20)
        whole = self._runtime.ticket(budget, request.service_level, asset.ladder)
        async with aclosing(Progressive(self._runtime, self._scheduler, asset, spec, whole).parts()) as parts:
            async for part in parts:
                yield _progressive_part(part, spec.encoding)

    async def RenderPath(
        self, request: splat_pb2.RenderPathRequest, context: Any
    ) -> AsyncIterator[splat_pb2.RenderPathResponse]:
        budget = self._runtime.budget(context)
        asset = self._runtime.identity.find("scene", request.scene)
        room_bytes = self._runtime.config.max_message_mib << 20
        # In a thread: a thousand key cameras take the event loop too long.
        spec = await asyncio.to_thread(read_path, request, self._scenes[asset.hash], room_bytes)
        whole = self._runtime.ticket(budget, request.service_level, asset.ladder)
        walk = Walk(self._runtime, self._scheduler, asset, spec, whole)
        async with aclosing(walk.parts()) as parts:
            async for part in parts:
                for message in _path_parts(part, walk, spec.first.encoding):
                    yield message

    async def LoadScene(
        self, request: splat_pb2.LoadSceneRequest, context: Any
    ) -> AsyncIterator[splat_pb2.LoadSceneResponse]:
        for part in _parts_of("LoadScene"):
            yield part

    async def UnloadScene(self, request: splat_pb2.UnloadSceneRequest, context: Any) -> splat_pb2.UnloadSceneResponse:
        raise Unimplemented("UnloadScene: not served yet")


def _parts_of(rpc: str) -> Sequence[Any]:
    """Of a stream that is part of the contract and not served yet: none; raises Unimplemented."""
    raise Unimplemented(f"{rpc}: not served yet; the scene folder is loaded when the worker starts")


def _progressive_part(
    part: common_pb2.Plan | Refined | common_pb2.Served, encoding: Encoding
) -> splat_pb2.RenderProgressiveResponse:
    if isinstance(part, common_pb2.Plan):
        return splat_pb2.RenderProgressiveResponse(plan=part)
    if isinstance(part, common_pb2.Served):
        return splat_pb2.RenderProgressiveResponse(served=part)
    frame = splat_pb2.ProgressiveFrame(index=part.index, frame=_frame(part.frame, encoding), served=part.served)
    return splat_pb2.RenderProgressiveResponse(frame=frame)


def _path_parts(
    part: common_pb2.Plan | Walked | Skipped | common_pb2.Served, walk: Walk, encoding: Encoding
) -> Iterator[splat_pb2.RenderPathResponse]:
    """The messages of one part; bytes of a film go before what they show the end of."""
    if isinstance(part, common_pb2.Plan):
        yield splat_pb2.RenderPathResponse(plan=part)
    elif isinstance(part, Skipped):
        yield splat_pb2.RenderPathResponse(frame=splat_pb2.PathFrame(index=part.index, skipped=part.reason))
    elif isinstance(part, Walked):
        frame = _frame(part.frame, encoding)
        if walk.film is not None:
            yield from _video_bytes(frame.data)
            frame.data, frame.format = b"", common_pb2.PIXEL_FORMAT_UNSPECIFIED
        message = splat_pb2.PathFrame(index=part.index, frame=frame, served=part.served)
        yield splat_pb2.RenderPathResponse(frame=message)
    else:
        if walk.film is not None:
            yield from _video_bytes(walk.film.close())
        yield splat_pb2.RenderPathResponse(served=part)


def _video_bytes(data: bytes) -> Iterator[splat_pb2.RenderPathResponse]:
    for start in range(0, len(data), _MOST_VIDEO_BYTES):
        yield splat_pb2.RenderPathResponse(video=data[start : start + _MOST_VIDEO_BYTES])


def _frame(frame: EncodedFrame, encoding: Encoding) -> splat_pb2.Frame:
    return splat_pb2.Frame(
        data=frame.data,
        format=PIXEL_FORMATS[encoding],
        width=frame.width,
        height=frame.height,
        rendered_width=frame.rendered_width,
        rendered_height=frame.rendered_height,
        gaussians=frame.gaussians,
    )


def _scene(scene: LoadedScene) -> splat_pb2.Scene:
    gaussians = scene.ranked.scene
    return splat_pb2.Scene(
        name=scene.name,
        hash=scene.hash,
        gaussians=gaussians.count,
        sh_degree=gaussians.sh_degree,
        default_camera=_look_at(scene.ranked.home),
        ladder=scene.ranked.ladder.to_proto(),
        dropped=gaussians.dropped,
        memory_bytes=gaussians.memory_bytes,
    )


def _look_at(pose: Pose) -> splat_pb2.LookAtCamera:
    return splat_pb2.LookAtCamera(
        position=_vector(pose.position),
        target=_vector(pose.target),
        up=_vector(pose.up),
        field_of_view_deg=pose.field_of_view_deg,
    )


def _vector(vector: Vector) -> splat_pb2.Vector3:
    return splat_pb2.Vector3(x=vector[0], y=vector[1], z=vector[2])
