"""Safetensors weights, whole or sharded: every name and shape is checked before any is read, every value when it is."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from services.text_worker.model.architecture import Architecture, Attention, Layer
from services.text_worker.model.config import CheckpointError, read_json
from services.text_worker.model.rope import rotary_order
from services.text_worker.model.tensors import Shape, expected_shapes, gated_names, layer_prefix

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HASH_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Matrix:
    """A linear map as the checkpoint holds it: `x @ weight.T + bias`."""

    weight: Tensor  # [out, in]
    bias: Tensor | None = None  # [out]


M = TypeVar("M")
"""What a backend makes of a `Matrix`: packed, quantised, moved, or left as it is."""


@dataclass(frozen=True)
class Gated(Generic[M]):
    """One gated MLP."""

    gate_up: M  # [2 * width, hidden], the gate's rows first
    down: M  # [hidden, width]


@dataclass(frozen=True)
class Mixture(Generic[M]):
    """A router over equal MLPs."""

    router: M  # [experts, hidden]
    experts: tuple[Gated[M], ...]


@dataclass(frozen=True)
class LayerWeights(Generic[M]):
    """One layer. Norms are fp32 with the family's offset added, ready to multiply."""

    input_norm: Tensor  # [hidden]
    qkv: M  # [(heads + 2 * kv_heads) * head_dim, hidden]; query and key rows in `rotary_order`
    query_norm: Tensor | None  # [head_dim], with qk_norm
    key_norm: Tensor | None  # [head_dim], with qk_norm
    out: M  # [hidden, heads * head_dim]
    post_attention_norm: Tensor | None  # [hidden], with sandwich
    mlp_norm: Tensor  # [hidden]
    mlp: Gated[M] | Mixture[M]
    post_mlp_norm: Tensor | None  # [hidden], with sandwich


@dataclass(frozen=True)
class Weights(Generic[M]):
    """A whole checkpoint. A tied head is made from the embedding."""

    embedding: Tensor  # [vocab, hidden]
    layers: tuple[LayerWeights[M], ...]
    norm: Tensor  # [hidden] fp32
    head: M  # [vocab, hidden]
    parameters: int
    """Number of weights; a tied head is not counted again."""


def load_weights(
    folder: Path, architecture: Architecture, pack: Callable[[Matrix], M], dtype: torch.dtype = torch.float32
) -> Weights[M]:
    """Reads every tensor, matrices in `dtype` through `pack`, one layer at a time: no second copy of the whole.

    Raises CheckpointError naming the tensor or file and what is wrong.
    """
    shapes = expected_shapes(architecture)
    with _opened(folder, shapes) as read:
        reader = _Reader(architecture, lambda name: read(name).to(dtype), pack)
        return reader.weights(sum(torch.Size(shape).numel() for shape in shapes.values()))


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


@dataclass(frozen=True)
class _Reader(Generic[M]):
    """Puts a checkpoint's tensors together."""

    architecture: Architecture
    read: Callable[[str], Tensor]
    pack: Callable[[Matrix], M]

    def weights(self, parameters: int) -> Weights[M]:
        embedding = self.read("model.embed_tokens.weight")
        head = embedding if self.architecture.tied_embeddings else self.read("lm_head.weight")
        return Weights(
            embedding=embedding,
            layers=tuple(self._layer(index, layer) for index, layer in enumerate(self.architecture.layers)),
            norm=self._norm("model.norm"),
            head=self.pack(Matrix(head)),
            parameters=parameters,
        )

    def _layer(self, index: int, layer: Layer) -> LayerWeights[M]:
        prefix, names, attention = layer_prefix(index), self.architecture.names, layer.attention
        normed = attention.qk_norm
        return LayerWeights(
            input_norm=self._norm(prefix + "input_layernorm"),
            qkv=self._qkv(prefix, attention),
            query_norm=self._norm(prefix + "self_attn.q_norm") if normed else None,
            key_norm=self._norm(prefix + "self_attn.k_norm") if normed else None,
            out=self._matrix((prefix + "self_attn.o_proj",), attention.out_bias),
            post_attention_norm=self._norm(f"{prefix}{names.post_attention_norm}") if layer.sandwich else None,
            mlp_norm=self._norm(prefix + names.mlp_norm),
            mlp=self._mlp(prefix, layer),
            post_mlp_norm=self._norm(f"{prefix}{names.post_mlp_norm}") if layer.sandwich else None,
        )

    def _norm(self, name: str) -> Tensor:
        return self.read(name + ".weight").float() + self.architecture.norm_offset

    def _qkv(self, prefix: str, attention: Attention) -> M:
        raw = self._joined(tuple(prefix + name for name in self.architecture.names.qkv), attention.qkv_bias)
        if attention.rope.rotary_dim == attention.head_dim:
            return self.pack(raw)
        order = rotary_order(attention.rope, attention.head_dim)
        starts = torch.arange(attention.heads + attention.kv_heads) * attention.head_dim
        turned = (starts[:, None] + order).flatten()  # rows of all query and key heads
        rows = torch.cat((turned, torch.arange(len(turned), len(raw.weight))))
        return self.pack(Matrix(raw.weight[rows], None if raw.bias is None else raw.bias[rows]))

    def _mlp(self, prefix: str, layer: Layer) -> Gated[M] | Mixture[M]:
        mixture = layer.mlp.experts
        if mixture is None:
            return self._gated(prefix, layer, None)
        router = self._matrix((prefix + self.architecture.names.router,), biased=False)
        return Mixture(router, tuple(self._gated(prefix, layer, expert) for expert in range(mixture.count)))

    def _gated(self, prefix: str, layer: Layer, expert: int | None) -> Gated[M]:
        gate_up, down = gated_names(prefix, self.architecture.names, expert)
        return Gated(self._matrix(gate_up, layer.mlp.bias), self._matrix((down,), layer.mlp.bias))

    def _matrix(self, names: tuple[str, ...], biased: bool) -> M:
        return self.pack(self._joined(names, biased))

    def _joined(self, names: tuple[str, ...], biased: bool) -> Matrix:
        """Parts one under the other."""
        weights = [self.read(name + ".weight") for name in names]
        biases = [self.read(name + ".bias") for name in names] if biased else []
        return Matrix(torch.cat(weights), torch.cat(biases) if biases else None)


@contextmanager
def _opened(folder: Path, shapes: Mapping[str, Shape]) -> Iterator[Callable[[str], Tensor]]:
    """A reader of tensors by name, after every name and shape in every file's header was found right."""
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for file in weight_files(folder):
            tensors = stack.enter_context(_file(folder / file))
            for name in _checked_names(file, tensors, shapes, files):
                files[name] = tensors
        missing = sorted(shapes.keys() - files.keys())
        if missing:
            raise CheckpointError(f"{missing[0]}: missing from the checkpoint, with {len(missing) - 1} more")
        yield lambda name: _checked(name, files[name])


@contextmanager
def _file(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name}: cannot be read: {error}") from error


def _checked_names(file: str, tensors: Any, shapes: Mapping[str, Shape], seen: Mapping[str, Any]) -> Iterator[str]:
    """The names in one file, judged by its header: nothing is read for a lying one."""
    for name in tensors.keys():  # noqa: SIM118 - the handle is not a mapping
        if _ignored(name, shapes):
            continue
        if name in seen:
            raise CheckpointError(f"{name}: held twice, again in {file}")
        if name not in shapes:
            raise CheckpointError(f"{name}: not a tensor of this architecture")
        shape = tuple(tensors.get_slice(name).get_shape())
        if shape != shapes[name]:
            raise CheckpointError(f"{name}: shape {shape} where config.json asks for {shapes[name]}")
        yield name


def _ignored(name: str, shapes: Mapping[str, Shape]) -> bool:
    """Old exports carry the rotary table, and some keep a tied head; neither says anything new."""
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and name not in shapes)


def _checked(name: str, tensors: Any) -> Tensor:
    tensor: Tensor = tensors.get_tensor(name)
    if tensor.dtype not in DTYPES:
        raise CheckpointError(f"{name}: dtype {tensor.dtype} is not supported; supported: {DTYPES}")
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{name}: holds NaN or infinite values")
    return tensor
