"""Writes a trained network in the Hugging Face layout and loads it back as the worker does."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from services.text_worker.training.network import Network
from services.text_worker.training.settings import Shape
from services.text_worker.training.vocabulary import ASSISTANT, BEGIN, CHAT_TEMPLATE, END, SYSTEM, USER

DTYPE = torch.float16


def write_checkpoint(out: Path, network: Network, tokenizer: Tokenizer, shape: Shape) -> None:
    """Writes config, weights in fp16, tokenizer, chat template and generation defaults to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": value.to(DTYPE).contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(out / "tokenizer.json"))
    begin, end = (tokenizer.get_vocab()[mark] for mark in (BEGIN, END))
    write_json(out / "config.json", _config(shape, begin, end))
    write_json(out / "tokenizer_config.json", _tokenizer_config(shape))
    ends = {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": end}
    write_json(out / "generation_config.json", ends | {"do_sample": True, "temperature": 0.5, "top_p": 0.9})


def rounded_to_shipped(network: Network) -> None:
    """Rounds the weights to what the shipped file holds, so that figures measured next are its own."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.to(DTYPE))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """One readable JSON file, ending with a line end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config(shape: Shape, begin: int, end: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float16",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.rms_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": begin,
        "eos_token_id": end,
    }


def _tokenizer_config(shape: Shape) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.context,
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": END,
        "additional_special_tokens": [USER, ASSISTANT, SYSTEM],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
