"""Detokenisation in deltas, stop strings across borders, and the checkpoint's end tokens."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from services.text_worker.model.architecture import Architecture
from services.text_worker.model.config import CheckpointError
from services.text_worker.model.families import parse_architecture
from services.text_worker.sampling import Sampling
from services.text_worker.tokenizer import Detokenizer, StopStrings, TextTokenizer, load_sampling, load_tokenizer

TEXTS = [
    "The budget is the time left until the deadline.",
    "Zeit, größer – 日本語 🚀 naïve café",
    "a b  c\n\nd",
]
SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def byte_level() -> TextTokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return TextTokenizer(tokenizer, frozenset({1}), None, 8)


def byte_fallback() -> TextTokenizer:
    """As Llama 2: words with a leading ▁, unknown code points as single bytes, the first space stripped."""
    vocab = {"<unk>": 0, **{f"<0x{i:02X}>": i + 1 for i in range(256)}}
    vocab |= {piece: 257 + i for i, piece in enumerate("▁abcdefghijklmnop")}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return TextTokenizer(tokenizer, frozenset(), None, 8)


BYTE_LEVEL, BYTE_FALLBACK = byte_level(), byte_fallback()


def deltas(tokenizer: TextTokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push([i]) for i in ids), detokenizer.flush()]


@given(st.lists(st.integers(0, BYTE_LEVEL.tokenizer.get_vocab_size() - 1), max_size=60))
@settings(max_examples=200, deadline=None)
def test_deltas_of_any_tokens_join_to_the_decode(ids: list[int]) -> None:
    parts = deltas(BYTE_LEVEL, ids)
    assert "".join(parts) == BYTE_LEVEL.decode(ids)
    assert not any(part.endswith("\ufffd") for part in parts[:-1])


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
@settings(max_examples=150, deadline=None)
def test_a_text_comes_back_from_its_deltas(text: str) -> None:
    assert "".join(deltas(BYTE_LEVEL, BYTE_LEVEL.encode(text))) == text
    ids = BYTE_FALLBACK.encode(text.replace("▁", ""))
    assert "".join(deltas(BYTE_FALLBACK, ids)) == BYTE_FALLBACK.decode(ids)


def test_a_code_point_comes_whole() -> None:
    ids = BYTE_FALLBACK.encode("a🚀b")
    assert [part for part in deltas(BYTE_FALLBACK, ids) if part] == ["a", "🚀", "b"]


ALPHABET = st.text("abc", max_size=12)


@given(st.lists(ALPHABET, max_size=8), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
@settings(max_examples=300, deadline=None)
def test_a_stop_cuts_the_same_however_the_text_comes(parts: list[str], stops: list[str]) -> None:
    """Compared with the plain definition: the text ends before the stop that is complete first."""
    text, stopper = "".join(parts), StopStrings(stops)
    given_out = "".join(stopper.push(part) for part in parts) + stopper.flush()
    met = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert stopper.stopped == bool(met)
    assert given_out == (text[: min(met)[1]] if met else text)


def test_only_what_may_begin_a_stop_is_held_back() -> None:
    stopper = StopStrings(["END", "\n\n"])
    assert [stopper.push(part) for part in ("one E", "ND?")] == ["one ", ""]
    assert stopper.stopped
    stopper = StopStrings(["END", "\n\n"])
    assert [stopper.push(part) for part in ("one EN", "T\n", "two\n", "\n")] == ["one ", "ENT", "\ntwo", ""]


def folder_with(tmp_path: Path, generation: object) -> Path:
    BYTE_LEVEL.tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    return tmp_path


def config(vocab: int = 400) -> Architecture:
    raw = {"architectures": ["LlamaForCausalLM"], "vocab_size": vocab, "eos_token_id": 3} | SIZES
    return parse_architecture(raw)


@pytest.mark.parametrize(
    ("generation", "expected"), [({"eos_token_id": [1, 7]}, {1, 7}), ({"eos_token_id": 5}, {5}), ({}, {3})]
)
def test_end_tokens_come_from_the_generation_config_first(
    generation: object, expected: set[int], tmp_path: Path
) -> None:
    assert load_tokenizer(folder_with(tmp_path, generation), config()).eos_ids == expected


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({}, Sampling()),
        ({"temperature": 0.7}, Sampling()),
        ({"do_sample": True, "temperature": 0.7, "top_k": 0}, Sampling(0.7, None, 1.0)),
        ({"do_sample": True, "top_p": 0.9}, Sampling(1.0, 50, 0.9)),
    ],
)
def test_how_to_draw_comes_from_the_generation_config(generation: object, expected: Sampling, tmp_path: Path) -> None:
    assert load_sampling(folder_with(tmp_path, generation)) == expected


@pytest.mark.parametrize("value", [{"temperature": 99}, {"top_k": "many"}, {"top_p": [1]}, {"temperature": 1e999}])
def test_a_bad_generation_config_is_refused(value: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="generation_config"):
        load_sampling(folder_with(tmp_path, {"do_sample": True} | value))


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="do not fit vocab_size 300"):
        load_tokenizer(folder_with(tmp_path, {}), config(300))


def test_a_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": 7}')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path, config())
