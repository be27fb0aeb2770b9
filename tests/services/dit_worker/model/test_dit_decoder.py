"""A small random autoencoder in diffusers' layout, read, run and broken in every way that its folder can be."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.dit_worker.model import checkpoint
from services.dit_worker.model.checkpoint import CheckpointError, Config
from services.dit_worker.model.decoder import VAE, VAE_CONFIG, VAE_WEIGHTS, Pixels, load_decoder
from services.dit_worker.model.tensors import sha256_of
from services.dit_worker.model.vae import VaeDecoder, VaeShape

SMALL = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [8, 16],
    "latent_channels": 1,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "out_channels": 3,
    "scaling_factor": 0.5,
}
STABLE_DIFFUSION = SMALL | {
    "block_out_channels": [128, 256, 512, 512],
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
LATENT = (1, 4, 4)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(3)
    network = VaeDecoder(VaeShape.from_diffusers(SMALL))
    state = {key: value.half() for key, value in network.state_dict().items()}
    tmp_path.joinpath(VAE_CONFIG).write_text(json.dumps(SMALL))
    save_file(state | {"encoder.conv_in.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / VAE_WEIGHTS)
    return tmp_path


def _load(folder):
    return load_decoder(folder, LATENT, sha256_of(folder / VAE_WEIGHTS))


def _configure(folder, **change):
    (folder / VAE_CONFIG).write_text(json.dumps(SMALL | change))


def test_the_real_ones_decoder_is_shaped_as_published():
    """AutoencoderKL of Stable Diffusion: 83,653,863 weights, 34,163,592 in the encoder, 72 after it."""
    with torch.device("meta"):
        network = VaeDecoder(VaeShape.from_diffusers(STABLE_DIFFUSION))
    assert sum(weight.numel() for weight in network.parameters()) == 83_653_863 - 34_163_592 - 72
    assert network(torch.empty(1, 4, 32, 32, device="meta")).shape == (1, 3, 256, 256)


def test_latents_become_images_row_by_row(folder):
    decoder = _load(folder)
    assert decoder.image_shape(LATENT) == (3, 8, 8)
    latents = torch.randn(5, *LATENT)
    images = decoder.decode(latents)
    assert images.shape == (5, 3, 8, 8)
    assert images.dtype == torch.float32
    torch.testing.assert_close(decoder.decode(latents[3:4]), images[3:4], rtol=1e-4, atol=1e-5)
    assert (images[0] - images[1]).abs().max() > 1e-3


def test_scaling_and_shift_are_undone_before_decoding(folder):
    plain = _load(folder)
    _configure(folder, scaling_factor=0.25, shift_factor=0.5)
    latents = torch.randn(2, *LATENT)
    torch.testing.assert_close(_load(folder).decode(latents), plain.decode((latents / 0.25 + 0.5) * 0.5))


def test_pixel_models_pass_through():
    x = torch.randn(2, 3, 4, 4)
    assert Pixels().decode(x) is x
    assert Pixels().image_shape((3, 4, 4)) == (3, 4, 4)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"block_out_channels": []}, "block_out_channels"),
        ({"block_out_channels": [8, 10**9]}, "block_out_channels"),
        ({"block_out_channels": [8, 15]}, "norm_num_groups"),
        ({"block_out_channels": [8] * 7}, "block_out_channels"),
        ({"block_out_channels": "8"}, "block_out_channels"),
        ({"layers_per_block": 10_000}, "layers_per_block"),
        ({"layers_per_block": True}, "layers_per_block"),
        ({"latent_channels": 0}, "latent_channels"),
        ({"latent_channels": 4}, "latent_channels"),
        ({"norm_num_groups": 0}, "norm_num_groups"),
        ({"scaling_factor": 0}, "scaling_factor"),
        ({"scaling_factor": float("nan")}, "scaling_factor"),
        ({"shift_factor": "1"}, "shift_factor"),
        ({"act_fn": "relu"}, "act_fn"),
        ({"use_post_quant_conv": 1}, "use_post_quant_conv"),
        ({"use_post_quant_conv": False}, "post_quant_conv"),
    ],
)
def test_a_bad_config_names_its_field(folder, change, field):
    _configure(folder, **change)
    with pytest.raises(CheckpointError, match=field):
        _load(folder)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, " " * 70_000])
def test_a_config_that_is_no_object_is_refused(folder, text):
    (folder / VAE_CONFIG).write_text(text)
    with pytest.raises(CheckpointError, match=VAE_CONFIG):
        _load(folder)


@pytest.mark.parametrize("name", [VAE_CONFIG, VAE_WEIGHTS])
def test_a_missing_file_is_named(folder, name):
    digest = sha256_of(folder / VAE_WEIGHTS)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_decoder(folder, LATENT, digest)


def test_bad_weights_are_named(folder):
    good = load_file(folder / VAE_WEIGHTS)
    key = "decoder.conv_out.weight"
    nan = good[key].clone()
    nan[0, 0, 0, 0] = float("nan")
    for tensors, problem in [
        (good | {key: nan}, "holds NaN"),
        (good | {key: good[key].double()}, "must be F16 or F32"),
        (good | {key: good[key].flatten()}, "must be F16 or F32"),
        (good | {"else": nan}, "is not in the topology"),
        ({name: value for name, value in good.items() if name != key}, "is missing"),
    ]:
        save_file(tensors, folder / VAE_WEIGHTS)
        with pytest.raises(CheckpointError, match=problem):
            _load(folder)


def test_a_model_folder_brings_its_decoder(tiny, folder):
    """And its config pins the decoder's weights, as it does the model's own."""
    (folder / VAE).mkdir()
    for name in (VAE_CONFIG, VAE_WEIGHTS):
        (folder / name).rename(folder / VAE / name)
    draft = Config("tiny", tiny.topology, ("a", "b", "c"), 1.0, (1,), "", {}, sha256_of(folder / VAE / VAE_WEIGHTS))
    config = checkpoint.save(folder, tiny, draft)
    rungs = [{"steps": 1, "quality": 1.0, "dfd": 0.1}]
    (folder / "card.json").write_text(json.dumps({"weights_sha256": config.weights_sha256, "rungs": rungs}))
    loaded = checkpoint.load(folder)
    assert loaded.config == config
    assert loaded.decoder.decode(torch.randn(1, 1, 4, 4)).shape == (1, 3, 8, 8)
    assert replace(config, decoder_sha256=None).fingerprint != config.fingerprint
    with (folder / VAE / VAE_WEIGHTS).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(CheckpointError, match="hash"):
        checkpoint.load(folder)
