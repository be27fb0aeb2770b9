"""config.json: sizes, options and ropes that are not supported are refused by the field's name."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.text_worker.model.architecture import Architecture
from services.text_worker.model.config import CheckpointError
from services.text_worker.model.families import load_architecture, parse_architecture

GOOD: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": [1, 2],
}
LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}


def test_a_plain_configuration_is_read() -> None:
    config = parse_architecture(GOOD)
    rope = config.layers[0].attention.rope
    assert (config.head_dim, config.kv_heads, rope.theta, rope.kind) == (8, 2, 10_000.0, "default")
    assert config.eos_ids == {1, 2}
    assert not config.tied_embeddings


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"architectures": None}, "architectures"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"sliding_window": 512}, "sliding_window"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "original_max_position_embeddings"),
        ({"rope_scaling": {"type": "proportional"}}, "proportional"),
        ({"rope_scaling": {"type": ["yarn"]}}, "yarn"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": LLAMA3}, "original_max_position_embeddings"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 0.5}}, "high_freq_factor"),
        ({"rope_scaling": "llama3"}, "rope_scaling"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"hidden_size": 2**40}, "hidden_size"),
        ({"hidden_size": 30}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"vocab_size": "64"}, "vocab_size"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"eos_token_id": 64}, "eos_token_id"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        parse_architecture(GOOD | change)


@pytest.mark.parametrize(
    ("content", "said"), [(b"[1]", "object"), (b"{", "JSON"), (b"\xff", "JSON"), (b"[" * 10**6, "JSON")]
)
def test_an_unreadable_file_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        load_architecture(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_architecture(tmp_path)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4)


@given(field=st.sampled_from([*GOOD, "head_dim", "rope_theta", "rope_scaling", "rope_parameters"]), value=JSON)
@settings(max_examples=150, deadline=None)
def test_any_value_is_read_or_refused(field: str, value: object) -> None:
    with contextlib.suppress(CheckpointError):
        assert isinstance(parse_architecture(GOOD | {field: value}), Architecture)
