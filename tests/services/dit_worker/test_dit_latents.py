"""A model of latents behind a real server: what comes back is what its autoencoder makes of the samples."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_dit_worker import worker

from headway.server import StartError
from headway.v1 import common_pb2, image_pb2, image_pb2_grpc
from services.dit_worker.model import checkpoint
from services.dit_worker.model.checkpoint import Config
from services.dit_worker.model.decoder import VAE, VAE_CONFIG, VAE_WEIGHTS
from services.dit_worker.model.tensors import sha256_of
from services.dit_worker.model.vae import VaeDecoder, VaeShape
from services.dit_worker.sampler import finish, start

SHAPE = VaeShape(latent_channels=1, out_channels=3, widths=(8, 8), layers=1, groups=4, scaling_factor=0.5)
TIMEOUT_S = 20.0


@pytest.fixture
def folder(tiny, tmp_path):
    torch.manual_seed(5)
    (tmp_path / VAE).mkdir()
    save_file(
        {key: value.half() for key, value in VaeDecoder(SHAPE).state_dict().items()}, tmp_path / VAE / VAE_WEIGHTS
    )
    layout = {"latent_channels": 1, "block_out_channels": [8, 8], "norm_num_groups": 4, "scaling_factor": 0.5}
    (tmp_path / VAE / VAE_CONFIG).write_text(json.dumps(layout))
    digest = sha256_of(tmp_path / VAE / VAE_WEIGHTS)
    config = checkpoint.save(tmp_path, tiny, Config("tiny", tiny.topology, ("a", "b", "c"), 1.0, (1,), "", {}, digest))
    rungs = [{"steps": 1, "quality": 1.0, "dfd": 0.1}]
    (tmp_path / checkpoint.CARD).write_text(json.dumps({"weights_sha256": config.weights_sha256, "rungs": rungs}))
    return tmp_path


async def test_images_are_the_decoded_samples(folder, tmp_path):
    model = checkpoint.load(folder)
    request = image_pb2.GenerateImagesRequest(labels=[0, 1, 2], seed=11, format=common_pb2.PIXEL_FORMAT_FLOAT32)
    async with worker(model=folder, cache_dir=tmp_path / "cache") as channel:
        stub = image_pb2_grpc.ImageGenerationStub(channel)
        messages = [message async for message in stub.Generate(request, timeout=TIMEOUT_S)]
        (listed,) = (await stub.ListModels(image_pb2.ListImageModelsRequest(), timeout=TIMEOUT_S)).models
    assert (listed.channels, listed.height, listed.width) == (3, 8, 8)
    images = [image for message in messages for image in message.batch.images]
    samples = [start(model.network, seed=11, index=index, label=index) for index in range(3)]
    wanted = model.decoder.decode(torch.stack([sample.x for sample in finish(model.network, samples, 1)]))
    for image, expected in zip(images, wanted.clamp(-1, 1), strict=True):
        assert (image.channels, image.height, image.width) == (3, 8, 8)
        found = np.frombuffer(image.data, "<f4").reshape(8, 8, 3)
        np.testing.assert_allclose(found, expected.permute(1, 2, 0), atol=1e-4)


async def test_a_broken_autoencoder_stops_the_worker_at_its_start(folder, tmp_path):
    with (folder / VAE / VAE_WEIGHTS).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(StartError, match=VAE_WEIGHTS):
        async with worker(model=folder, cache_dir=tmp_path / "cache"):
            pass
