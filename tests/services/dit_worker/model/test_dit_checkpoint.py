"""Model folders as an attacker, a broken disk or a careless hand would leave them."""

import json
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from services.dit_worker.model.checkpoint import CheckpointError, Config, load, save, sha256_of

RUNGS = [{"steps": 2, "quality": 1.0, "dfd": 0.2}, {"steps": 1, "quality": 0.9, "dfd": 0.3}]


@pytest.fixture
def folder(tiny, tmp_path):
    names = ("a", "b", "c")
    config = save(tmp_path, tiny, Config("tiny", tiny.topology, names, 1.0, (2, 1), "", {"steps": 1}))
    _write_card(tmp_path, weights_sha256=config.weights_sha256, rungs=RUNGS)
    return tmp_path


def _write_card(folder, **content):
    (folder / "card.json").write_text(json.dumps(content))


def _edit_config(folder, **change):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))


def _replace_weights(folder, tensors):
    """Other weights under a hash that fits, so that the check behind the hash is the one at work."""
    save_file(tensors, folder / "model.safetensors")
    digest = sha256_of(folder / "model.safetensors")
    _edit_config(folder, weights_sha256=digest)
    _write_card(folder, weights_sha256=digest, rungs=RUNGS)


def test_what_was_saved_is_loaded(folder, tiny):
    checkpoint = load(folder)
    assert [(rung.steps, rung.quality) for rung in checkpoint.rungs] == [(2, 1.0), (1, 0.9)]
    assert checkpoint.config.class_names == ("a", "b", "c")
    x, ones = torch.randn(2, 1, 4, 4), torch.ones(2)
    labels = torch.tensor([0, 2])
    with torch.inference_mode():
        expected, loaded = (net(x, ones, ones / 2, labels, ones) for net in (tiny, checkpoint.network))
    torch.testing.assert_close(loaded, expected, rtol=0.02, atol=0.02)  # fp16 weights
    assert not any(parameter.requires_grad for parameter in checkpoint.network.parameters())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "card.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load(folder)


def test_flipped_bits_do_not_match_the_hash(folder):
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="hash"):
        load(folder)


@pytest.mark.parametrize("kept", [0, 7, 100, 5000])
def test_a_truncated_file_is_refused_by_its_size(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="bytes"):
        load(folder)


def test_an_overlong_file_is_refused_unread(folder):
    with (folder / "model.safetensors").open("ab") as file:
        file.truncate(2**33)  # sparse
    with pytest.raises(CheckpointError, match="bytes"):
        load(folder)


def test_a_header_that_lies_about_its_length_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])
    _edit_config(folder, weights_sha256=sha256_of(path))
    with pytest.raises(CheckpointError, match="safetensors"):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder, value):
    tensors = load_file(folder / "model.safetensors")
    tensors["final.weight"][0, 0] = value
    _replace_weights(folder, tensors)
    with pytest.raises(CheckpointError, match=r"final\.weight: holds NaN"):
        load(folder)


def test_shapes_dtypes_and_names_must_be_the_topologys(folder):
    good = load_file(folder / "model.safetensors")
    transposed = good | {"final.weight": good["final.weight"].T.contiguous()}
    bfloat = good | {"final.weight": good["final.weight"].bfloat16()}
    renamed = dict(good)
    renamed["finale.weight"] = renamed.pop("final.weight")
    for tensors, problem in [(transposed, "must be F16"), (bfloat, "must be F16"), (renamed, "final")]:
        _replace_weights(folder, tensors)
        with pytest.raises(CheckpointError, match=problem):
            load(folder)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"format": 2}, "format"),
        ({"ladder": [1, 2]}, "ladder"),
        ({"ladder": []}, "ladder"),
        ({"ladder": [True]}, "ladder"),
        ({"ladder": ["4"]}, "ladder"),
        ({"class_names": ["a"]}, "class_names"),
        ({"class_names": ["a", "b", 3]}, "class_names"),
        ({"topology": {"width": 16}}, "topology"),
        ({"topology": 5}, "topology"),
        ({"guidance_max": 0.5}, "guidance_max"),
        ({"guidance_max": "2"}, "guidance_max"),
        ({"guidance": 1.0}, "guidance"),
        ({"guidance": {}}, "guidance"),
        ({"guidance": {"3": 1.0}}, "guidance"),
        ({"guidance": {"2": 1.5}}, "guidance 2"),
        ({"guidance": {"2": "1"}}, "guidance 2"),
        ({"name": None}, "name"),
        ({"name": "a" * 65}, "name"),
        ({"name": "../b"}, "name"),
    ],
)
def test_a_bad_config_names_its_field(folder, change, field):
    _edit_config(folder, **change)
    with pytest.raises(CheckpointError, match=field):
        load(folder)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"weights_sha256": "0" * 64}, "weights_sha256"),
        ({"rungs": RUNGS[:1]}, "rungs"),
        ({"rungs": [RUNGS[0], RUNGS[1] | {"quality": 1.5}]}, "quality"),
        ({"rungs": [RUNGS[0] | {"quality": 0.5}, RUNGS[1]]}, "quality"),
        ({"rungs": [RUNGS[0], RUNGS[1] | {"dfd": float("nan")}]}, "dfd"),
        ({"rungs": [RUNGS[0], 1]}, "rungs"),
        ({"rungs": None}, "rungs"),
    ],
)
def test_a_bad_card_names_its_field(folder, change, field):
    card = json.loads((folder / "card.json").read_text())
    _write_card(folder, **(card | change))
    with pytest.raises(CheckpointError, match=field):
        load(folder)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.one_of(st.binary(max_size=64), st.just(b"[" * 100_000), st.just(b"[]"), st.just(b" " * 300_000)))
def test_any_bytes_for_a_config_give_the_one_error(folder, raw):
    (folder / "config.json").write_bytes(raw)
    with pytest.raises(CheckpointError):
        load(folder)
