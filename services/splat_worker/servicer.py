"""`headway.v1.SplatRendering`: validate, admit, answer with the frame."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from headway.errors import Unimplemented
from headway.ticket import Finished
from headway.v1 import common_pb2, splat_pb2, splat_pb2_grpc
from headway.worker import WorkerRuntime
from services.splat_worker.encode import Encoding
from services.splat_worker.frame import EncodedFrame, Frame
from services.splat_worker.request import read_request
from services.splat_worker.scene_messages import load_messages, scene_message
from services.splat_worker.scenes import Scenes

PIXEL_FORMATS: Mapping[Encoding, common_pb2.PixelFormat] = {
    Encoding.PNG: common_pb2.PIXEL_FORMAT_PNG,
    Encoding.JPEG: common_pb2.PIXEL_FORMAT_JPEG,
    Encoding.WEBP: common_pb2.PIXEL_FORMAT_WEBP,
    Encoding.RAW: common_pb2.PIXEL_FORMAT_RAW,
}


class SplatServicer(splat_pb2_grpc.SplatRenderingServicer):
    """The scenes of one worker behind one engine loop."""

    def __init__(self, runtime: WorkerRuntime, scenes: Scenes) -> None:
        self._runtime, self._scenes = runtime, scenes

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

    async def RenderPath(
        self, request: splat_pb2.RenderPathRequest, context: Any
    ) -> AsyncIterator[splat_pb2.RenderPathResponse]:
        for part in _parts_of("RenderPath"):
            yield part

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


def _parts_of(rpc: str) -> Sequence[Any]:
    """Of a stream that is part of the contract and not served yet: none; raises Unimplemented."""
    raise Unimplemented(f"{rpc}: not served yet")


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
