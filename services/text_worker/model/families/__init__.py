"""Model families: each reads a config.json into an `Architecture`, and refuses by name what it does not serve."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from services.text_worker.model.architecture import Architecture
from services.text_worker.model.config import CheckpointError, Fields, read_json
from services.text_worker.model.families.gemma import gemma2, gemma3
from services.text_worker.model.families.llama import llama
from services.text_worker.model.families.mistral import mistral, mixtral
from services.text_worker.model.families.phi import phi3
from services.text_worker.model.families.qwen import qwen2, qwen3, qwen3_moe

FAMILIES: Mapping[str, Callable[[Fields], Architecture]] = {
    "LlamaForCausalLM": llama,
    "MistralForCausalLM": mistral,
    "MixtralForCausalLM": mixtral,
    "Qwen2ForCausalLM": qwen2,
    "Qwen3ForCausalLM": qwen3,
    "Qwen3MoeForCausalLM": qwen3_moe,
    "Gemma2ForCausalLM": gemma2,
    "Gemma3ForCausalLM": gemma3,
    "Phi3ForCausalLM": phi3,
}


def load_architecture(folder: Path) -> Architecture:
    """Reads `folder/config.json`. Raises CheckpointError naming the field and the limit."""
    return parse_architecture(read_json(folder / "config.json"))


def parse_architecture(raw: Mapping[str, Any]) -> Architecture:
    """From JSON in the layout of transformers 4 or 5. Raises CheckpointError naming the field and the limit."""
    names = raw.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise CheckpointError(f"architectures: must name one architecture, is {names!r:.80}")
    if names[0] not in FAMILIES:
        raise CheckpointError(f"architectures: {names[0]!r:.80} is not supported; supported: {', '.join(FAMILIES)}")
    return FAMILIES[names[0]](Fields(raw))
