"""Safetensors weights, whole or sharded: every name, shape and value is checked before use."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from services.text_worker.model.config import CheckpointError, LlamaConfig, read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HASH_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class LayerWeights:
    """One layer's tensors; matrices are [out, in] as `functional.linear` takes them. Biases may be absent."""

    input_norm: Tensor  # [hidden]
    qkv: Tensor  # [(heads + 2 * kv_heads) * head_dim, hidden]
    qkv_bias: Tensor | None  # [(heads + 2 * kv_heads) * head_dim]
    out: Tensor  # [hidden, heads * head_dim]
    out_bias: Tensor | None  # [hidden]
    post_norm: Tensor  # [hidden]
    gate_up: Tensor  # [2 * mlp, hidden]
    gate_up_bias: Tensor | None  # [2 * mlp]
    down: Tensor  # [hidden, mlp]
    down_bias: Tensor | None  # [hidden]


@dataclass(frozen=True)
class Weights:
    """A whole checkpoint in one dtype; `head` is the embedding itself where they are tied."""

    embedding: Tensor  # [vocab, hidden]
    layers: tuple[LayerWeights, ...]
    norm: Tensor  # [hidden]
    head: Tensor  # [vocab, hidden]

    @property
    def parameters(self) -> int:
        """Number of weights; a tied head is not counted again."""
        own_head = () if self.head is self.embedding else (self.head,)
        layered = (value for layer in self.layers for value in vars(layer).values() if value is not None)
        return sum(tensor.numel() for tensor in (self.embedding, self.norm, *own_head, *layered))


def load_weights(folder: Path, config: LlamaConfig, dtype: torch.dtype = torch.float32) -> Weights:
    """Reads every tensor. Raises CheckpointError naming the tensor or file and what is wrong."""
    shapes = expected_shapes(config)
    tensors = {name: tensor.to(dtype) for name, tensor in _read(folder, shapes)}
    missing = sorted(shapes.keys() - tensors.keys())
    if missing:
        raise CheckpointError(f"{missing[0]}: missing from the checkpoint, with {len(missing) - 1} more")
    embedding = tensors["model.embed_tokens.weight"]
    return Weights(
        embedding=embedding,
        layers=tuple(_layer(tensors, f"model.layers.{i}.") for i in range(config.layers)),
        norm=tensors["model.norm.weight"],
        head=embedding if config.tied_embeddings else tensors["lm_head.weight"],
    )


def weight_files(folder: Path) -> tuple[str, ...]:
    """Names of the weight files, sorted. A name in an index may not lead out of the folder."""
    if (folder / SINGLE_FILE).exists():
        return (SINGLE_FILE,)
    if not (folder / INDEX_FILE).exists():
        raise CheckpointError(f"{folder}: holds neither {SINGLE_FILE} nor {INDEX_FILE}")
    weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX_FILE}: weight_map must map tensors to files")
    names = set(weight_map.values()) if all(isinstance(v, str) for v in weight_map.values()) else {""}
    for name in names:
        if not name.endswith(".safetensors") or name != Path(name).name or "\\" in name or "\0" in name:
            raise CheckpointError(f"{INDEX_FILE}: {name!r:.80} is not the name of a .safetensors file beside it")
    return tuple(sorted(names))


def fingerprint(folder: Path) -> str:
    """sha256 in hex over the names and bytes of config.json and the weight files: what is loaded, exactly."""
    total = hashlib.sha256()
    for name in ("config.json", *weight_files(folder)):
        part = hashlib.sha256()
        with (folder / name).open("rb") as file:
            while chunk := file.read(HASH_CHUNK_BYTES):
                part.update(chunk)
        total.update(f"{name}\0{part.hexdigest()}\n".encode())
    return total.hexdigest()


def expected_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this configuration must hold, and its shape."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab, config.hidden),
        "model.norm.weight": (config.hidden,),
    }
    if not config.tied_embeddings:
        shapes["lm_head.weight"] = (config.vocab, config.hidden)
    layer = _layer_shapes(config)
    shapes.update({f"model.layers.{i}.{name}": shape for i in range(config.layers) for name, shape in layer.items()})
    return shapes


def _layer_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    query, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    matrices = {
        "self_attn.q_proj": (query, config.hidden),
        "self_attn.k_proj": (kv, config.hidden),
        "self_attn.v_proj": (kv, config.hidden),
        "self_attn.o_proj": (config.hidden, query),
        "mlp.gate_proj": (config.mlp, config.hidden),
        "mlp.up_proj": (config.mlp, config.hidden),
        "mlp.down_proj": (config.hidden, config.mlp),
    }
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in matrices.items()}
    for name, (out, _) in matrices.items():
        if config.attention_bias if name.startswith("self_attn") else config.mlp_bias:
            shapes[f"{name}.bias"] = (out,)
    norms = ("input_layernorm.weight", "post_attention_layernorm.weight")
    return shapes | dict.fromkeys(norms, (config.hidden,))


def _read(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Tensor]]:
    seen: set[str] = set()
    for file in weight_files(folder):
        with _opened(folder / file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 - the handle is not a mapping
                if _ignored(name, shapes):
                    continue
                if name in seen:
                    raise CheckpointError(f"{name}: held twice, again in {file}")
                seen.add(name)
                yield name, _checked(name, tensors, shapes)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name}: cannot be read: {error}") from error


def _ignored(name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Old exports carry the rotary table, and some keep a tied head; neither says anything new."""
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and name not in shapes)


def _checked(name: str, tensors: Any, shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
    if name not in shapes:
        raise CheckpointError(f"{name}: not a tensor of this architecture")
    shape = tuple(tensors.get_slice(name).get_shape())  # from the header: nothing is read for a lying one
    if shape != shapes[name]:
        raise CheckpointError(f"{name}: shape {shape} where config.json asks for {shapes[name]}")
    tensor: Tensor = tensors.get_tensor(name)
    if tensor.dtype not in DTYPES:
        raise CheckpointError(f"{name}: dtype {tensor.dtype} is not supported; supported: {DTYPES}")
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{name}: holds NaN or infinite values")
    return tensor


def _layer(tensors: dict[str, Tensor], prefix: str) -> LayerWeights:
    def fused(*names: str) -> tuple[Tensor, Tensor | None]:
        parts = [tensors.pop(f"{prefix}{name}.weight") for name in names]
        biases = [tensors.pop(f"{prefix}{name}.bias", None) for name in names]
        present = [bias for bias in biases if bias is not None]
        return torch.cat(parts), torch.cat(present) if present else None

    qkv, qkv_bias = fused("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    out, out_bias = fused("self_attn.o_proj")
    gate_up, gate_up_bias = fused("mlp.gate_proj", "mlp.up_proj")
    down, down_bias = fused("mlp.down_proj")
    return LayerWeights(
        input_norm=tensors.pop(prefix + "input_layernorm.weight"),
        qkv=qkv,
        qkv_bias=qkv_bias,
        out=out,
        out_bias=out_bias,
        post_norm=tensors.pop(prefix + "post_attention_layernorm.weight"),
        gate_up=gate_up,
        gate_up_bias=gate_up_bias,
        down=down,
        down_bias=down_bias,
    )
