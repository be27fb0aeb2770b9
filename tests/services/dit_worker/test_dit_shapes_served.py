"""The 32x32 model behind a real server: pictures with guidance, and refusals by field."""

import io
from pathlib import Path

import grpc
import pytest
from PIL import Image
from test_dit_worker import TIMEOUT_S, worker

from headway.errors import from_rpc_error
from headway.v1 import image_pb2, image_pb2_grpc

MODEL = Path(__file__).parents[3] / "models" / "dit-shapes"
CLASSES = 8


@pytest.fixture
async def stub(tmp_path):
    async with worker(model=MODEL, max_batch=16, cache_dir=tmp_path) as channel:
        yield image_pb2_grpc.ImageGenerationStub(channel)


async def test_every_class_comes_as_a_picture_and_what_was_not_trained_is_refused(stub):
    request = image_pb2.GenerateImagesRequest(labels=range(CLASSES), seed=3, guidance=1.5)
    messages = [message async for message in stub.Generate(request, timeout=TIMEOUT_S)]
    images = [image for message in messages for image in message.batch.images]
    assert [image.label for image in images] == list(range(CLASSES))
    for image in images:
        picture = Image.open(io.BytesIO(image.data))
        assert (picture.mode, picture.size) == ("RGB", (32, 32))
        assert len(picture.getcolors(1024)) > 50
    assert messages[-1].summary.served.rung.label in ("4", "2", "1")
    for field, value in [("guidance", 2.5), ("guidance", 0.5), ("labels", [CLASSES])]:
        wrong = image_pb2.GenerateImagesRequest(**({"labels": [0]} | {field: value}))
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            _ = [message async for message in stub.Generate(wrong, timeout=TIMEOUT_S)]
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert field in str(from_rpc_error(refusal.value))
