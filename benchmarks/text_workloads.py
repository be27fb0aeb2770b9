"""The text benchmark's workloads and the random checkpoint that they run on."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

SHAPE = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 32_000}
HEADS = {"num_attention_heads": 12, "num_key_value_heads": 4, "max_position_embeddings": 2048}
SMALL = {"hidden_size": 384, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 512}


@dataclass(frozen=True)
class Workload:
    """Requests that arrive together: prompts of token ids, and how many new tokens each is to get."""

    name: str
    prompts: tuple[tuple[int, ...], ...]
    new_tokens: tuple[int, ...]


def workloads(vocab: int, share: float = 1.0) -> tuple[Workload, ...]:
    """W1 to W4 of DESIGN's text experiment; `share` below 1 shortens everything for a quick look."""
    draw = random.Random(7)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, vocab) for _ in range(max(4, round(count * share))))

    def new(count: int) -> int:
        return max(2, round(count * share))

    mixed = [(draw.randint(32, 512), draw.randint(16, 128)) for _ in range(32)]
    common = tokens(384)
    return (
        Workload("W1 8 x 128+64", tuple(tokens(128) for _ in range(8)), (new(64),) * 8),
        Workload("W2 1 x 128+64", (tokens(128),), (new(64),)),
        Workload("W3 32 mixed", tuple(tokens(p) for p, _ in mixed), tuple(new(n) for _, n in mixed)),
        Workload("W4 16 x 384 shared+32, 32", tuple(common + tokens(32) for _ in range(16)), (new(32),) * 16),
    )


def make_checkpoint(folder: Path, *, small: bool = False) -> Path:
    """A Llama of 124.7M random weights (100.1M read for each decoded token) in Hugging Face layout; made once."""
    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    sizes = SHAPE | (SMALL if small else {})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
        **sizes,
        **HEADS,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    torch.manual_seed(1)
    head_dim = sizes["hidden_size"] // HEADS["num_attention_heads"]
    if head_dim * HEADS["num_attention_heads"] != sizes["hidden_size"]:
        raise ValueError("heads must divide the hidden size")
    save_file(dict(_tensors(sizes, head_dim)), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _tensors(sizes: dict[str, int], head_dim: int) -> Iterator[tuple[str, torch.Tensor]]:
    hidden, mlp, kv = sizes["hidden_size"], sizes["intermediate_size"], HEADS["num_key_value_heads"] * head_dim
    yield "model.embed_tokens.weight", torch.randn(sizes["vocab_size"], hidden) * 0.02
    yield "lm_head.weight", torch.randn(sizes["vocab_size"], hidden) * 0.02
    yield "model.norm.weight", torch.ones(hidden)
    shapes = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden)}
    shapes |= {"self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (mlp, hidden), "mlp.up_proj": (mlp, hidden)}
    shapes |= {"mlp.down_proj": (hidden, mlp)}
    for layer in range(sizes["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, shape in shapes.items():
            yield f"{prefix}{name}.weight", torch.randn(shape) * 0.02
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{name}.weight", torch.ones(hidden)
