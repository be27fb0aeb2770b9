"""`headway.v1.ImageGeneration`: validate, admit, stream what the engine finishes."""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from headway.ticket import Finished
from headway.v1 import common_pb2, image_pb2, image_pb2_grpc
from headway.worker import LoadedAsset, WorkerRuntime
from services.dit_worker.encode import Format
from services.dit_worker.request import RequestLimits, read_request
from services.dit_worker.sample_group import EncodedImage, ImagesSpec, Previews, SampleGroup

MESSAGE_BYTES = 1 << 20
"""Images that are ready together share messages up to about this size."""

PIXEL_FORMATS = {
    Format.PNG: common_pb2.PIXEL_FORMAT_PNG,
    Format.JPEG: common_pb2.PIXEL_FORMAT_JPEG,
    Format.WEBP: common_pb2.PIXEL_FORMAT_WEBP,
    Format.RAW: common_pb2.PIXEL_FORMAT_RAW,
    Format.FLOAT32: common_pb2.PIXEL_FORMAT_FLOAT32,
}


class ImageServicer(image_pb2_grpc.ImageGenerationServicer):
    """One model behind one engine loop."""

    def __init__(self, runtime: WorkerRuntime, limits: RequestLimits) -> None:
        self._runtime, self._limits = runtime, limits

    async def Generate(
        self, request: image_pb2.GenerateImagesRequest, context: Any
    ) -> AsyncIterator[image_pb2.GenerateImagesResponse]:
        budget = self._runtime.budget(context)
        asset = self._runtime.identity.find("model", request.model)
        spec = read_request(request, self._limits)
        group = SampleGroup(self._runtime.ticket(budget, request.service_level, asset.ladder), spec)
        async for event in self._runtime.events(group):
            if isinstance(event, common_pb2.Plan):
                yield image_pb2.GenerateImagesResponse(plan=event)
            elif isinstance(event, Previews):
                for message in self._messages(event.images, spec, preview=True):
                    yield image_pb2.GenerateImagesResponse(batch=message)
            elif isinstance(event, Finished):
                for message in self._messages(event.result, spec):
                    yield image_pb2.GenerateImagesResponse(batch=message)
        yield image_pb2.GenerateImagesResponse(summary=self._summary(group, asset))

    async def ListModels(
        self, request: image_pb2.ListImageModelsRequest, context: Any
    ) -> image_pb2.ListImageModelsResponse:
        models = [self._model(asset) for asset in self._runtime.identity.assets]
        return image_pb2.ListImageModelsResponse(models=models)

    def _messages(
        self, images: Sequence[EncodedImage], spec: ImagesSpec, *, preview: bool = False
    ) -> Iterator[image_pb2.ImageBatch]:
        batch, size_bytes = image_pb2.ImageBatch(), 0
        for image in images:
            if batch.images and size_bytes + len(image.data) > MESSAGE_BYTES:
                yield batch
                batch, size_bytes = image_pb2.ImageBatch(), 0
            batch.images.append(self._image(image, spec.form, preview))
            size_bytes += len(image.data)
        yield batch

    def _image(self, image: EncodedImage, form: Format, preview: bool) -> image_pb2.Image:
        channels, height, width = self._limits.image_shape
        return image_pb2.Image(
            index=image.index,
            label=image.label,
            data=image.data,
            format=PIXEL_FORMATS[form],
            width=width,
            height=height,
            channels=3 if form is Format.WEBP else channels,  # WebP knows no grey
            nfe=image.executed,
            preview=preview,
        )

    def _summary(self, group: SampleGroup, asset: LoadedAsset) -> image_pb2.ImagesSummary:
        return image_pb2.ImagesSummary(served=self._runtime.served(group.ticket, asset), seed=group.spec.seed)

    def _model(self, asset: LoadedAsset) -> image_pb2.ImageModel:
        topology = self._limits.model.topology
        channels, height, width = self._limits.image_shape
        return image_pb2.ImageModel(
            name=asset.name,
            hash=asset.hash,
            width=width,
            height=height,
            channels=channels,
            classes=topology.classes,
            ladder=asset.ladder.to_proto(),
        )
