"""Weight files: what is missing, extra, mis-shaped, not finite or outside the folder is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from services.text_worker.model.architecture import Architecture
from services.text_worker.model.config import CheckpointError
from services.text_worker.model.dense import as_it_is
from services.text_worker.model.families import parse_architecture
from services.text_worker.model.tensors import expected_shapes
from services.text_worker.model.weights import fingerprint, load_weights, weight_files

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def architecture() -> Architecture:
    return parse_architecture(CONFIG)


@pytest.fixture
def tensors(architecture: Architecture) -> Tensors:
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in expected_shapes(architecture).items()}


def write(folder: Path, tensors: Tensors) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors, folder / "model.safetensors")


def write_sharded(folder: Path, tensors: Tensors, *, other_file: str = "b.safetensors") -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    names = sorted(tensors)
    files = {name: "a.safetensors" if i % 2 else "b.safetensors" for i, name in enumerate(names)}
    for file in ("a.safetensors", "b.safetensors"):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
    weight_map = {name: other_file if file == "b.safetensors" else file for name, file in files.items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_hold_what_the_whole_file_holds(architecture: Architecture, tensors: Tensors, tmp_path: Path) -> None:
    for name in ("whole", "sharded"):
        (tmp_path / name).mkdir()
    write(tmp_path / "whole", tensors)
    write_sharded(tmp_path / "sharded", tensors)
    whole, sharded = (load_weights(tmp_path / name, architecture, as_it_is) for name in ("whole", "sharded"))
    assert torch.equal(whole.head.weight, sharded.head.weight)
    assert all(torch.equal(a.qkv.weight, b.qkv.weight) for a, b in zip(whole.layers, sharded.layers, strict=True))
    assert weight_files(tmp_path / "sharded") == ("a.safetensors", "b.safetensors")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("model.norm.weight", None, r"model\.norm\.weight: missing"),
        (
            "model.layers.1.mlp.down_proj.weight",
            torch.ones(8, 13),
            r"mlp\.down_proj\.weight: shape \(8, 13\)",
        ),
        (
            "model.layers.0.self_attn.q_norm.weight",
            torch.ones(8),
            "q_norm.*not a tensor of this architecture",
        ),
        ("model.norm.weight", torch.full((8,), float("nan")), r"model\.norm\.weight: holds NaN"),
        ("model.norm.weight", torch.full((8,), float("inf")), r"model\.norm\.weight: holds NaN or infinite"),
        ("model.norm.weight", torch.ones(8, dtype=torch.int32), r"model\.norm\.weight: dtype"),
    ],
)
def test_a_wrong_tensor_is_refused(
    name: str, value: torch.Tensor | None, said: str, architecture: Architecture, tensors: Tensors, tmp_path: Path
) -> None:
    tensors.pop(name, None)
    write(tmp_path, tensors if value is None else tensors | {name: value})
    with pytest.raises(CheckpointError, match=said):
        load_weights(tmp_path, architecture, as_it_is)


@pytest.mark.parametrize(
    "file", ["../b.safetensors", "/etc/b.safetensors", "x\\b.safetensors", "b.bin", "", "a/b.safetensors", 7]
)
def test_an_index_may_not_lead_out_of_the_folder(
    file: str, architecture: Architecture, tensors: Tensors, tmp_path: Path
) -> None:
    write_sharded(tmp_path, tensors, other_file=file)
    with pytest.raises(CheckpointError, match="not the name of a"):
        load_weights(tmp_path, architecture, as_it_is)


def test_a_tensor_held_twice_is_refused(architecture: Architecture, tensors: Tensors, tmp_path: Path) -> None:
    write_sharded(tmp_path, tensors)
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="held twice"):
        load_weights(tmp_path, architecture, as_it_is)


@pytest.mark.parametrize("keep", [0, 4, 100, -4])
def test_a_truncated_file_is_refused(keep: int, architecture: Architecture, tensors: Tensors, tmp_path: Path) -> None:
    write(tmp_path, tensors)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        load_weights(tmp_path, architecture, as_it_is)


def test_a_missing_file_is_named(architecture: Architecture, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        load_weights(tmp_path, architecture, as_it_is)


def test_old_extras_that_say_nothing_new_are_let_by(
    architecture: Architecture, tensors: Tensors, tmp_path: Path
) -> None:
    tied = parse_architecture(CONFIG | {"tie_word_embeddings": True})
    write(tmp_path, tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)})
    weights = load_weights(tmp_path, tied, as_it_is)
    assert weights.head.weight is weights.embedding


def test_the_fingerprint_changes_with_any_byte(tensors: Tensors, tmp_path: Path) -> None:
    write_sharded(tmp_path, tensors)
    before = fingerprint(tmp_path)
    assert before == fingerprint(tmp_path)
    tensors["model.norm.weight"][0] += 1e-6
    write_sharded(tmp_path, tensors)
    after = fingerprint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"rope_theta": 20_000.0}))
    assert len({before, after, fingerprint(tmp_path)}) == 3
