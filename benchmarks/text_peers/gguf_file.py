"""A Llama checkpoint in Hugging Face layout as a GGUF file, for peers that read that. Needs gguf, numpy, safetensors.

The random checkpoint of the benchmark has no tokenizer, and peers are asked for tokens by number; so the file's words
only number the tokens.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(folder: Path, kind: str = "F16") -> Path:
    """Writes model-<kind>.gguf beside the checkpoint once and gives its path; `kind` of the matrices: F16 or Q8_0."""
    path = folder / f"model-{kind}.gguf"
    if path.exists():
        return path
    config = json.loads((folder / "config.json").read_text("utf-8"))
    unfinished = path.with_suffix(".part")
    writer = gguf.GGUFWriter(unfinished, "llama")
    _describe(writer, config, kind)
    quantised = gguf.GGMLQuantizationType[kind]
    for name, values in _tensors(folder, config):
        if values.ndim == 1:
            writer.add_tensor(name, values.astype(np.float32))
        elif kind == "F16":
            writer.add_tensor(name, values.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(values.astype(np.float32), quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(path)
    return path


def _describe(writer: gguf.GGUFWriter, config: dict[str, Any], kind: str) -> None:
    heads, vocab = config["num_attention_heads"], config["vocab_size"]
    writer.add_name("benchmark")
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_vocab_size(vocab)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["<s>", "</s>", "a", "b", "ab", *(f"t{number}" for number in range(5, vocab))])
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (vocab - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def _tensors(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    tensors = load_file(folder / "model.safetensors")
    yield "token_embd.weight", tensors["model.embed_tokens.weight"]
    yield "output_norm.weight", tensors["model.norm.weight"]
    yield "output.weight", tensors["lm_head.weight"]
    turned = {"self_attn.q_proj": config["num_attention_heads"], "self_attn.k_proj": config["num_key_value_heads"]}
    for layer in range(config["num_hidden_layers"]):
        for theirs, ours in NAMES.items():
            values = tensors[f"model.layers.{layer}.{theirs}.weight"]
            heads = turned.get(theirs)
            yield f"blk.{layer}.{ours}.weight", values if heads is None else _paired(values, heads)


def _paired(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order of this format, in which the two that turn together lie side by side."""
    rows, width = values.shape
    return values.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)
