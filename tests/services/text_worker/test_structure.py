"""Structures: what they allow, and bombs that are refused before or while they are compiled."""

import json
from typing import Any

import pytest
from text_rig import MODEL

from headway.errors import BadInput
from services.text_worker.model.families import load_architecture
from services.text_worker.structure import CACHED, MAX_DEPTH, Kind, Structure, Structures
from services.text_worker.tokenizer import TextTokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return load_tokenizer(MODEL, load_architecture(MODEL))


@pytest.fixture(scope="module")
def structures(tokenizer: TextTokenizer) -> Structures:
    return Structures(tokenizer, load_architecture(MODEL).vocab)


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def test_only_what_fits_is_allowed(structures: Structures, tokenizer: TextTokenizer) -> None:
    guide = structures.guide(Structure("regex", "(yes|no)!"))
    for token in tokenizer.encode("no!", special=False):
        allowed = guide.allowed()
        assert allowed[token]
        assert all("yes!".startswith(tokenizer.decode([i])) or "no!".find(tokenizer.decode([i])) >= 0
                   for i in allowed.nonzero()[0])  # fmt: skip
        guide.accept(token)
    assert guide.complete
    assert guide.allowed().nonzero()[0].tolist() == sorted(tokenizer.eos_ids)


def test_a_recursive_schema_is_followed(structures: Structures, tokenizer: TextTokenizer) -> None:
    tree = {"$defs": {"n": {"type": "object", "properties": {"c": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}
    guide = structures.guide(Structure("json_schema", json.dumps(tree)))
    text = '{"c":' * 40 + "{}" + "}" * 40
    tokens = tuple(tokenizer.encode(text, special=False))
    assert guide.follow(tokens) == len(tokens)
    assert guide.failure is None


@pytest.mark.parametrize(
    ("kind", "source", "said"),
    [
        ("json_schema", "", "1 to 65536 bytes"),
        ("json_schema", "{", "not JSON"),
        ("json_schema", "[" * 60_000, f"{MAX_DEPTH} levels"),
        ("json_schema", "true", "JSON object"),
        ("json_schema", json.dumps({"description": "x" * 70_000}), "1 to 65536 bytes"),
        ("json_schema", json.dumps(nested(200)), f"{MAX_DEPTH} levels"),
        ("json_schema", json.dumps({"properties": {f"k{i}": {} for i in range(513)}}), "512 fields"),
        ("json_schema", json.dumps({"enum": list(range(5000))}), "4096 parts"),
        ("json_schema", json.dumps({"$ref": "#"}), ""),
        ("json_schema", json.dumps({"$ref": "http://localhost/x.json"}), "registry"),
        ("json_schema", json.dumps({"$ref": "file:///etc/passwd"}), "registry"),
        ("json_schema", json.dumps({"type": "nothing"}), "nothing"),
        ("json_schema", json.dumps({"enum": []}), ""),
        ("regex", "((", "unclosed group"),
        ("regex", "x" * 8193, "1 to 8192 bytes"),
        ("grammar", "start: nobody", "nobody"),
        ("grammar", "start: " + '"a" ' * 20_000, "1 to 65536 bytes"),
    ],
)
def test_what_cannot_be_followed_is_refused(structures: Structures, kind: Kind, source: str, said: str) -> None:
    with pytest.raises(BadInput, match=f"structure.{kind}: .*{said}") as refused:
        structures.guide(Structure(kind, source))
    assert len(refused.value.message) < 500


def test_a_schema_that_multiplies_is_refused(structures: Structures) -> None:
    choice = [{"anyOf": [{"properties": {f"a{i}{j}": {"type": "string"}}} for j in range(6)]} for i in range(9)]
    with pytest.raises(BadInput, match="json_schema"):
        structures.guide(Structure("json_schema", json.dumps({"allOf": choice})))


def test_guides_of_one_structure_do_not_share_their_place(structures: Structures, tokenizer: TextTokenizer) -> None:
    first, second = (structures.guide(Structure("regex", "ab*")) for _ in range(2))
    (a,) = tokenizer.encode("a", special=False)[-1:]
    before = second.allowed()
    first.accept(a)
    assert (second.allowed() == before).all()
    assert not (first.allowed() == before).all()


def test_more_structures_than_are_remembered_still_compile(structures: Structures) -> None:
    for i in range(CACHED + 2):
        assert structures.guide(Structure("regex", f"x{i}")).failure is None


def test_a_guide_past_its_limits_ends_its_answer(tokenizer: TextTokenizer) -> None:
    guide = Structures(tokenizer, 4096).guide(Structure("regex", "[ab]"))
    guide.accept(4000)  # never allowed: what a limit leaves behind is the same state
    assert guide.failure is not None
    assert guide.complete
    assert guide.allowed().nonzero()[0].tolist() == sorted(tokenizer.eos_ids)
