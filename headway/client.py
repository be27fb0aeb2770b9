"""The Python client, blocking (`Headway`) and for asyncio (`AsyncHeadway`). Needs no torch.

    with Headway("127.0.0.1:50050") as mesh:
        for message in mesh.text(text_request("Once upon a time"), deadline_s=1.5):
            print(message.chunk.text, end="")

The deadline is the budget: a shorter one buys fewer steps. Failures raise a `HeadwayError` with status, reason, details
and, for refusals, when to come back. Leaving a stream early cancels the call, and the work stops within one step.
"""

from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any, Self

import grpc

from headway.channels import OPEN, Credentials, open_channel, open_sync_channel
from headway.direct import FRAME, IMAGES, TEXT, DirectPath
from headway.errors import from_rpc_error
from headway.tracing import inject
from headway.v1 import (
    image_pb2,
    image_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
    splat_pb2,
    splat_pb2_grpc,
    text_pb2,
    text_pb2_grpc,
)

DEFAULT_ADDRESS = "127.0.0.1:50050"


class _Stubs:
    """The stubs of one channel; a router and a worker are called alike."""

    def __init__(self, channel: Any, credentials: Credentials) -> None:
        self.text = text_pb2_grpc.TextGenerationStub(channel)
        self.image = image_pb2_grpc.ImageGenerationStub(channel)
        self.splat = splat_pb2_grpc.SplatRenderingStub(channel)
        self.router = router_pb2_grpc.RouterStub(channel)
        self._identity = credentials.metadata()

    def options(self, deadline_s: float) -> dict[str, Any]:
        return {"timeout": deadline_s, "metadata": inject(self._identity)}


class Headway:
    """Blocking client of a router or a worker. Safe to share between threads."""

    def __init__(self, address: str = DEFAULT_ADDRESS, credentials: Credentials = OPEN) -> None:
        self._channel = open_sync_channel(address, credentials)
        self._stubs = _Stubs(self._channel, credentials)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends what is in flight and closes the connection."""
        self._channel.close()

    def text(self, request: text_pb2.GenerateRequest, *, deadline_s: float) -> Iterator[text_pb2.GenerateResponse]:
        """Streams a plan, token chunks and a summary."""
        return _stream(self._stubs.text.Generate(request, **self._stubs.options(deadline_s)))

    def images(
        self, request: image_pb2.GenerateImagesRequest, *, deadline_s: float
    ) -> Iterator[image_pb2.GenerateImagesResponse]:
        """Streams a plan, images and a summary."""
        return _stream(self._stubs.image.Generate(request, **self._stubs.options(deadline_s)))

    def render(self, request: splat_pb2.RenderRequest, *, deadline_s: float) -> splat_pb2.RenderResponse:
        """Renders one frame."""
        return self._call(self._stubs.splat.Render, request, deadline_s)

    def progressive(
        self, request: splat_pb2.RenderRequest, *, deadline_s: float
    ) -> Iterator[splat_pb2.RenderProgressiveResponse]:
        """Streams a plan, a coarse frame and better ones until the deadline, and a summary."""
        return _stream(self._stubs.splat.RenderProgressive(request, **self._stubs.options(deadline_s)))

    def path(
        self, request: splat_pb2.RenderPathRequest, *, deadline_s: float
    ) -> Iterator[splat_pb2.RenderPathResponse]:
        """Streams a plan, the frames of a path in order, each rendered or skipped, and a summary."""
        return _stream(self._stubs.splat.RenderPath(request, **self._stubs.options(deadline_s)))

    def text_models(self, *, deadline_s: float = 5.0) -> text_pb2.ListTextModelsResponse:
        """The text models."""
        return self._call(self._stubs.text.ListModels, text_pb2.ListTextModelsRequest(), deadline_s)

    def image_models(self, *, deadline_s: float = 5.0) -> image_pb2.ListImageModelsResponse:
        """The image models."""
        return self._call(self._stubs.image.ListModels, image_pb2.ListImageModelsRequest(), deadline_s)

    def scenes(self, *, deadline_s: float = 5.0) -> splat_pb2.ListScenesResponse:
        """The scenes."""
        return self._call(self._stubs.splat.ListScenes, splat_pb2.ListScenesRequest(), deadline_s)

    def load_scene(
        self, name: str, *, pin: bool = False, deadline_s: float = 600.0
    ) -> Iterator[splat_pb2.LoadSceneResponse]:
        """Loads a scene of the workers' folder, or loads it anew; streams progress, last with the scene."""
        request = splat_pb2.LoadSceneRequest(scene=name, pin=pin)
        return _stream(self._stubs.splat.LoadScene(request, **self._stubs.options(deadline_s)))

    def unload_scene(self, name: str, *, deadline_s: float = 5.0) -> splat_pb2.UnloadSceneResponse:
        """Takes a scene out of service until it is loaded again."""
        return self._call(self._stubs.splat.UnloadScene, splat_pb2.UnloadSceneRequest(scene=name), deadline_s)

    def workers(self, *, deadline_s: float = 5.0) -> router_pb2.ListWorkersResponse:
        """The workers, as a router sees them."""
        return self._call(self._stubs.router.ListWorkers, router_pb2.ListWorkersRequest(), deadline_s)

    def _call(self, method: Any, request: Any, deadline_s: float) -> Any:
        try:
            return method(request, **self._stubs.options(deadline_s))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None


def _stream(call: Any) -> Iterator[Any]:
    try:
        yield from call
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None
    finally:
        call.cancel()


class AsyncHeadway:
    """The same client for asyncio. Make it inside the event loop that uses it."""

    def __init__(
        self, address: str = DEFAULT_ADDRESS, credentials: Credentials = OPEN, *, direct: bool = False
    ) -> None:
        """`direct`: stream straight from the workers that the router picks, where they can be reached from here."""
        self._channel = open_channel(address, credentials)
        self._stubs = _Stubs(self._channel, credentials)
        self._direct = DirectPath(self._channel, credentials) if direct else None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends what is in flight and closes the connection."""
        if self._direct is not None:
            await self._direct.close()
        await self._channel.close(None)

    def text(self, request: text_pb2.GenerateRequest, *, deadline_s: float) -> AsyncIterator[text_pb2.GenerateResponse]:
        """Streams a plan, token chunks and a summary."""
        if self._direct is not None:
            return self._direct.messages(TEXT, request, deadline_s)
        return _astream(self._stubs.text.Generate(request, **self._stubs.options(deadline_s)))

    def images(
        self, request: image_pb2.GenerateImagesRequest, *, deadline_s: float
    ) -> AsyncIterator[image_pb2.GenerateImagesResponse]:
        """Streams a plan, images and a summary."""
        if self._direct is not None:
            return self._direct.messages(IMAGES, request, deadline_s)
        return _astream(self._stubs.image.Generate(request, **self._stubs.options(deadline_s)))

    async def render(self, request: splat_pb2.RenderRequest, *, deadline_s: float) -> splat_pb2.RenderResponse:
        """Renders one frame."""
        if self._direct is not None:
            return [message async for message in self._direct.messages(FRAME, request, deadline_s)][-1]
        return await self._call(self._stubs.splat.Render, request, deadline_s)

    def progressive(
        self, request: splat_pb2.RenderRequest, *, deadline_s: float
    ) -> AsyncIterator[splat_pb2.RenderProgressiveResponse]:
        """Streams a plan, a coarse frame and better ones until the deadline, and a summary."""
        return _astream(self._stubs.splat.RenderProgressive(request, **self._stubs.options(deadline_s)))

    def path(
        self, request: splat_pb2.RenderPathRequest, *, deadline_s: float
    ) -> AsyncIterator[splat_pb2.RenderPathResponse]:
        """Streams a plan, the frames of a path in order, each rendered or skipped, and a summary."""
        return _astream(self._stubs.splat.RenderPath(request, **self._stubs.options(deadline_s)))

    async def text_models(self, *, deadline_s: float = 5.0) -> text_pb2.ListTextModelsResponse:
        """The text models."""
        return await self._call(self._stubs.text.ListModels, text_pb2.ListTextModelsRequest(), deadline_s)

    async def image_models(self, *, deadline_s: float = 5.0) -> image_pb2.ListImageModelsResponse:
        """The image models."""
        return await self._call(self._stubs.image.ListModels, image_pb2.ListImageModelsRequest(), deadline_s)

    async def scenes(self, *, deadline_s: float = 5.0) -> splat_pb2.ListScenesResponse:
        """The scenes."""
        return await self._call(self._stubs.splat.ListScenes, splat_pb2.ListScenesRequest(), deadline_s)

    def load_scene(
        self, name: str, *, pin: bool = False, deadline_s: float = 600.0
    ) -> AsyncIterator[splat_pb2.LoadSceneResponse]:
        """Loads a scene of the workers' folder, or loads it anew; streams progress, last with the scene."""
        request = splat_pb2.LoadSceneRequest(scene=name, pin=pin)
        return _astream(self._stubs.splat.LoadScene(request, **self._stubs.options(deadline_s)))

    async def unload_scene(self, name: str, *, deadline_s: float = 5.0) -> splat_pb2.UnloadSceneResponse:
        """Takes a scene out of service until it is loaded again."""
        return await self._call(self._stubs.splat.UnloadScene, splat_pb2.UnloadSceneRequest(scene=name), deadline_s)

    async def workers(self, *, deadline_s: float = 5.0) -> router_pb2.ListWorkersResponse:
        """The workers, as a router sees them."""
        return await self._call(self._stubs.router.ListWorkers, router_pb2.ListWorkersRequest(), deadline_s)

    async def _call(self, method: Any, request: Any, deadline_s: float) -> Any:
        try:
            return await method(request, **self._stubs.options(deadline_s))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None


async def _astream(call: Any) -> AsyncIterator[Any]:
    try:
        async for message in call:
            yield message
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None
    finally:
        call.cancel()
