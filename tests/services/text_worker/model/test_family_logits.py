"""Every family's logits are those of `transformers` on the same files, however prompts are cut and batched."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from services.text_worker.model.cache import KvCache
from services.text_worker.model.dense import DenseModel, Span
from services.text_worker.model.families import FAMILIES, load_architecture
from services.text_worker.model.weights import weight_files

SHIPPED = Path(__file__).parents[4] / "models" / "text"
TOLERANCE = 1e-4
SIZES = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
ENDS = {"eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 0}
MIXTURE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
FACTORS = [1.0, 1.3, 2.1, 4.0]
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": FACTORS,
    "long_factor": [1.5 * factor for factor in FACTORS],
    "original_max_position_embeddings": 96,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama_tied": ("Llama", {"tie_word_embeddings": True}),
    "llama_multi_head": ("Llama", {"num_key_value_heads": 4}),
    "llama_one_kv_head": ("Llama", {"num_key_value_heads": 1}),
    "llama_wide_heads": ("Llama", {"head_dim": 16}),
    "llama_biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama_llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama_linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "llama_dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    "llama_yarn": ("Llama", {"rope_parameters": YARN}),
    "llama_yarn_scaled": ("Llama", {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 1.2, "beta_fast": 8}}),
    "mistral": ("Mistral", {"sliding_window": 9}),
    "mistral_full": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2_windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
    "qwen3_moe": ("Qwen3Moe", MIXTURE | {"num_experts": 6, "norm_topk_prob": True, "head_dim": 8}),
    "qwen3_moe_mixed": ("Qwen3Moe", MIXTURE | {"num_experts": 4, "mlp_only_layers": [1], "head_dim": 16}),
    "gemma2": ("Gemma2", {"sliding_window": 7, "head_dim": 16, "query_pre_attn_scalar": 24}),
    "gemma2_uncapped": (
        "Gemma2",
        {"sliding_window": 7, "head_dim": 8, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma3": ("Gemma3", {"sliding_window": 7, "head_dim": 16, "num_hidden_layers": 7}),
    "gemma3_stretched": (
        "Gemma3",
        {
            "sliding_window": 5,
            "head_dim": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "phi3": ("Phi3", {}),
    "phi3_window": ("Phi3", {"sliding_window": 11, "tie_word_embeddings": True}),
    "phi3_partly_rotated": ("Phi3", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "phi3_longrope": ("Phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 96}),
}


@dataclass(frozen=True)
class Pair:
    """The same files, loaded by us and by `transformers`."""

    ours: DenseModel
    theirs: PreTrainedModel
    cache: KvCache

    def expected(self, tokens: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = self.theirs(torch.tensor([tokens])).logits[0, -1]
        return logits


def load_pair(folder: Path, *, context: int = 96) -> Pair:
    architecture = load_architecture(folder)
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    theirs = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ours = DenseModel.load(folder, architecture, context=context)
    return Pair(ours, theirs.eval(), KvCache(architecture, slots=4, context=context))


def random_checkpoint(folder: Path, family: str = "Llama", *, shard: str = "1GB", **options: Any) -> Path:
    """A tiny checkpoint with every parameter random, norms and biases too, so that none can be left out."""
    config_class = getattr(transformers, f"{family}TextConfig" if family == "Gemma3" else f"{family}Config")
    torch.manual_seed(7)
    model = getattr(transformers, f"{family}ForCausalLM")(config_class(**(SIZES | HEADS | ENDS | options)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.3)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def prompt(length: int, seed: int, vocab: int) -> list[int]:
    return torch.randint(vocab, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE)


def check_ragged(pair: Pair) -> None:
    """Prompts of several lengths, prefilled in chunks beside others' decode steps, then decoded together."""
    vocab = pair.ours.architecture.vocab
    sequences = [prompt(length, seed, vocab) for seed, length in enumerate((70, 5, 23))]
    done = [0, 0, 0]
    while any(done[i] < len(tokens) for i, tokens in enumerate(sequences)):
        active = [i for i, tokens in enumerate(sequences) if done[i] < len(tokens)]
        spans = [Span(i, done[i], tuple(sequences[i][done[i] : done[i] + (17, 4, 1)[i]])) for i in active]
        logits = pair.ours.forward(spans, pair.cache)
        for row, (i, span) in enumerate(zip(active, spans, strict=True)):
            done[i] = span.end
            close(logits[row], pair.expected(sequences[i][: span.end]))
    for step in range(3):
        for i, tokens in enumerate(sequences):
            tokens.append((11 * i + step) % vocab)
        logits = pair.ours.forward([Span(i, len(s) - 1, (s[-1],)) for i, s in enumerate(sequences)], pair.cache)
        for row, tokens in enumerate(sequences):
            close(logits[row], pair.expected(tokens))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_match_transformers(variant: str, tmp_path: Path) -> None:
    family, options = VARIANTS[variant]
    check_ragged(load_pair(random_checkpoint(tmp_path, family, **options)))


def test_every_family_is_proved() -> None:
    assert {f"{family}ForCausalLM" for family, _ in VARIANTS.values()} == FAMILIES.keys()


def test_longrope_serves_its_long_factors_beyond_the_original_context(tmp_path: Path) -> None:
    rope = LONGROPE | {"original_max_position_embeddings": 32}
    folder = random_checkpoint(tmp_path, "Phi3", rope_parameters=rope, original_max_position_embeddings=32)
    pair, tokens = load_pair(folder), prompt(60, 5, 97)
    close(pair.ours.forward([Span(0, 0, tuple(tokens))], pair.cache)[0], pair.expected(tokens))


def test_shipped_model_matches_transformers() -> None:
    check_ragged(load_pair(SHIPPED))


@pytest.mark.parametrize("family", ["Llama", "Phi3"])
def test_sharded_checkpoint_matches_transformers(family: str, tmp_path: Path) -> None:
    random_checkpoint(tmp_path, family, shard="20KB")
    assert len(weight_files(tmp_path)) > 2
    check_ragged(load_pair(tmp_path))


def test_older_config_layout_reads_the_same_rope(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path, rope_parameters=LLAMA3)
    modern = load_architecture(folder)
    raw = json.loads((folder / "config.json").read_text())
    rope = raw.pop("rope_parameters")
    raw["rope_theta"], raw["rope_scaling"] = rope.pop("rope_theta"), rope
    (folder / "config.json").write_text(json.dumps(raw))
    assert load_architecture(folder) == modern


def test_a_slot_taken_again_knows_nothing_of_its_last_holder(tmp_path: Path) -> None:
    pair = load_pair(random_checkpoint(tmp_path))
    for length, seed in ((60, 1), (9, 2)):
        slot = pair.cache.acquire()
        assert slot is not None
        tokens = prompt(length, seed, 97)
        close(pair.ours.forward([Span(slot, 0, tuple(tokens))], pair.cache)[0], pair.expected(tokens))
        pair.cache.release(slot)


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_bfloat16_stays_near_fp32(family: str, tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path, family)
    pair, tokens = load_pair(folder), prompt(40, 3, 97)
    architecture = load_architecture(folder)
    cache = KvCache(architecture, slots=1, context=64, dtype=torch.bfloat16)
    low = DenseModel.load(folder, architecture, torch.bfloat16).forward([Span(0, 0, tuple(tokens))], cache)[0]
    exact = pair.expected(tokens)
    assert low.dtype == torch.float32
    assert (low - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("span", [Span(0, 0, ()), Span(0, 90, (1,) * 7), Span(0, -1, (1,))])
def test_a_span_outside_the_context_is_refused(span: Span, tmp_path: Path) -> None:
    pair = load_pair(random_checkpoint(tmp_path))
    with pytest.raises(ValueError, match="context of 96"):
        pair.ours.forward([span], pair.cache)
