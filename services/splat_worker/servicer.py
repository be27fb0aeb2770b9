"""`headway.v1.SplatRendering`: validate, admit, answer with frames."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from headway.ticket import Finished
from headway.v1 import common_pb2, splat_pb2, splat_pb2_grpc
from headway.worker import WorkerRuntime
from services.splat_worker.encode import Encoding
from services.splat_worker.frame import EncodedFrame, Frame
from services.splat_worker.path_request import read_path
from services.splat_worker.progressive import Progressive, Refined
from services.splat_worker.request import read_request
from services.splat_worker.scene_messages import load_messages, scene_message
from services.splat_worker.scenes import Scenes
from services.splat_worker.scheduler import SplatScheduler
from services.splat_worker.walk import Skipped, Walk, Walked

PIXEL_FORMATS: Mapping[Encoding, common_pb2.PixelFormat] = {
    Encoding.PNG: common_pb2.PIXEL_FORMAT_PNG,
    Encoding.JPEG: common_pb2.PIXEL_FORMAT_JPEG,
    Encoding.WEBP: common_pb2.PIXEL_FORMAT_WEBP,
    Encoding.RAW: common_pb2.PIXEL_FORMAT_RAW,
    Encoding.FLOAT32: common_pb2.PIXEL_FORMAT_FLOAT32,
}


_MOST_VIDEO_BYTES = 1 << 20
"""Of a video in one message; a second of large frames may be more than a message holds."""


class SplatServicer(splat_pb2_grpc.SplatRenderingServicer):
    """The scenes of one worker behind one engine loop."""

    def __init__(self, runtime: WorkerRuntime, scenes: Scenes, scheduler: SplatScheduler) -> None:
        self._runtime, self._scenes, self._scheduler = runtime, scenes, scheduler

    async def Render(self, request: splat_pb2.RenderRequest, context: Any) -> splat_pb2.RenderResponse:
        budget = self._runtime.budget(context)
        scene = await self._scenes.find(request.scene, budget)
        spec = read_request(request, scene, self._runtime.config.max_message_mib << 20)
        work = Frame(self._runtime.ticket(budget, request.service_level, scene.ranked.ladder), spec)
        response = splat_pb2.RenderResponse()
        async with aclosing(self._runtime.events(work)) as events:
            async for event in events:
                if isinstance(event, common_pb2.Plan):
                    response.plan.CopyFrom(event)
                elif isinstance(event, Finished):
                    response.frame.CopyFrom(_frame(event.result, spec.encoding))
        response.served.CopyFrom(self._runtime.served(work.ticket, scene.asset))
        return response

    async def ListScenes(self, request: splat_pb2.ListScenesRequest, context: Any) -> splat_pb2.ListScenesResponse:
        return splat_pb2.ListScenesResponse(scenes=[scene_message(entry) for entry in self._scenes.entries])

    async def RenderProgressive(
        self, request: splat_pb2.RenderRequest, context: Any
    ) -> AsyncIterator[splat_pb2.RenderProgressiveResponse]:
        budget = self._runtime.budget(context)
        scene = await self._scenes.find(request.scene, budget)
        spec = read_request(request, scene, self._runtime.config.max_message_mib << 20)
        whole = self._runtime.ticket(budget, request.service_level, scene.ranked.ladder)
        async with aclosing(Progressive(self._runtime, self._scheduler, scene.asset, spec, whole).parts()) as parts:
            async for part in parts:
                yield _progressive_part(part, spec.encoding)

    async def RenderPath(
        self, request: splat_pb2.RenderPathRequest, context: Any
    ) -> AsyncIterator[splat_pb2.RenderPathResponse]:
        budget = self._runtime.budget(context)
        scene = await self._scenes.find(request.scene, budget)
        room_bytes = self._runtime.config.max_message_mib << 20
        # In a thread: a thousand key cameras take the event loop too long.
        spec = await asyncio.to_thread(read_path, request, scene, room_bytes)
        whole = self._runtime.ticket(budget, request.service_level, scene.ranked.ladder)
        walk = Walk(self._runtime, self._scheduler, scene.asset, spec, whole)
        async with aclosing(walk.parts()) as parts:
            async for part in parts:
                for message in _path_parts(part, walk, spec.first.encoding):
                    yield message

    async def LoadScene(
        self, request: splat_pb2.LoadSceneRequest, context: Any
    ) -> AsyncIterator[splat_pb2.LoadSceneResponse]:
        self._runtime.budget(context)
        async with aclosing(load_messages(self._scenes, request, self._runtime.service.clock)) as messages:
            async for message in messages:
                yield message

    async def UnloadScene(self, request: splat_pb2.UnloadSceneRequest, context: Any) -> splat_pb2.UnloadSceneResponse:
        self._runtime.budget(context)
        await self._scenes.unload(request.scene)
        return splat_pb2.UnloadSceneResponse()


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
