"""Our logits are those of `transformers` on the same files, however a prompt is cut and batched."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig as HfConfig
from transformers import LlamaForCausalLM

from services.text_worker.model.cache import KvCache
from services.text_worker.model.config import load_config
from services.text_worker.model.llama import Llama, Span
from services.text_worker.model.weights import load_weights, weight_files

SHIPPED = Path(__file__).parents[4] / "models" / "text"
TOLERANCE = 1e-4
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "multi_head": {"num_key_value_heads": 4},
    "one_kv_head": {"num_key_value_heads": 1},
    "wide_heads": {"head_dim": 16},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "llama3_rope": {"rope_parameters": LLAMA3},
    "linear_rope": {"rope_parameters": LINEAR},
}


@dataclass(frozen=True)
class Pair:
    """The same files, loaded by us and by `transformers`."""

    ours: Llama
    theirs: LlamaForCausalLM
    cache: KvCache

    def expected(self, tokens: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = self.theirs(torch.tensor([tokens])).logits[0, -1]
        return logits


def load_pair(folder: Path) -> Pair:
    config = load_config(folder)
    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    return Pair(Llama(config, load_weights(folder, config)), theirs, KvCache(config, slots=4, context=96))


def random_checkpoint(folder: Path, *, shard: str = "1GB", **options: Any) -> Path:
    """A tiny checkpoint with every parameter random, norms and biases too, so that none can be left out."""
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    config = HfConfig(**(sizes | heads | {"eos_token_id": 1, "bos_token_id": 0} | options))
    torch.manual_seed(7)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.3)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def prompt(length: int, seed: int, vocab: int) -> list[int]:
    return torch.randint(vocab, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def check_ragged(pair: Pair) -> None:
    """Prompts of several lengths, prefilled in chunks beside others' decode steps, then decoded together."""
    vocab = pair.ours.config.vocab
    sequences = [prompt(length, seed, vocab) for seed, length in enumerate((70, 5, 23))]
    done = [0, 0, 0]
    while any(done[i] < len(tokens) for i, tokens in enumerate(sequences)):
        active = [i for i, tokens in enumerate(sequences) if done[i] < len(tokens)]
        spans = [Span(i, done[i], tuple(sequences[i][done[i] : done[i] + (17, 4, 1)[i]])) for i in active]
        logits = pair.ours.forward(spans, pair.cache)
        for row, (i, span) in enumerate(zip(active, spans, strict=True)):
            done[i] = span.end
            torch.testing.assert_close(
                logits[row], pair.expected(sequences[i][: span.end]), atol=TOLERANCE, rtol=TOLERANCE
            )
    for step in range(3):
        for i, tokens in enumerate(sequences):
            tokens.append((11 * i + step) % vocab)
        logits = pair.ours.forward([Span(i, len(s) - 1, (s[-1],)) for i, s in enumerate(sequences)], pair.cache)
        for row, tokens in enumerate(sequences):
            torch.testing.assert_close(logits[row], pair.expected(tokens), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_match_transformers(variant: str, tmp_path: Path) -> None:
    check_ragged(load_pair(random_checkpoint(tmp_path, **VARIANTS[variant])))


def test_shipped_model_matches_transformers() -> None:
    check_ragged(load_pair(SHIPPED))


def test_sharded_checkpoint_matches_transformers(tmp_path: Path) -> None:
    random_checkpoint(tmp_path, shard="20KB")
    assert len(weight_files(tmp_path)) > 2
    check_ragged(load_pair(tmp_path))


def test_older_config_layout_reads_the_same_rope(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path, rope_parameters=LLAMA3)
    modern = load_config(folder)
    raw = json.loads((folder / "config.json").read_text())
    rope = raw.pop("rope_parameters")
    raw["rope_theta"], raw["rope_scaling"] = rope.pop("rope_theta"), rope
    (folder / "config.json").write_text(json.dumps(raw))
    assert load_config(folder) == modern


def test_a_slot_taken_again_knows_nothing_of_its_last_holder(tmp_path: Path) -> None:
    pair = load_pair(random_checkpoint(tmp_path))
    for length, seed in ((60, 1), (9, 2)):
        slot = pair.cache.acquire()
        assert slot is not None
        tokens = prompt(length, seed, 97)
        got = pair.ours.forward([Span(slot, 0, tuple(tokens))], pair.cache)[0]
        torch.testing.assert_close(got, pair.expected(tokens), atol=TOLERANCE, rtol=TOLERANCE)
        pair.cache.release(slot)


def test_bfloat16_stays_near_fp32(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path)
    pair, config = load_pair(folder), load_config(folder)
    tokens = prompt(40, 3, 97)
    cache = KvCache(config, slots=1, context=64, dtype=torch.bfloat16)
    low = Llama(config, load_weights(folder, config, torch.bfloat16)).forward([Span(0, 0, tuple(tokens))], cache)[0]
    exact = pair.expected(tokens)
    assert low.dtype == torch.float32
    assert (low - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("span", [Span(0, 0, ()), Span(0, 90, (1,) * 7), Span(0, -1, (1,))])
def test_a_span_outside_the_context_is_refused(span: Span, tmp_path: Path) -> None:
    pair = load_pair(random_checkpoint(tmp_path))
    with pytest.raises(ValueError, match="context of 96"):
        pair.ours.forward([span], pair.cache)
