"""Structured output: a JSON schema, a regular expression or a grammar says which tokens may come next.

Parsing is llguidance's. Here stand the limits: what callers send is read as an attack until it has been measured.
"""

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from headway.errors import BadInput
from services.text_worker.tokenizer import TextTokenizer

Kind = Literal["json_schema", "regex", "grammar"]
MAX_BYTES = {"json_schema": 65_536, "regex": 8_192, "grammar": 65_536}
MAX_DEPTH = 32
MAX_NODES = 4_096
MAX_PROPERTIES = 512
"""Of one object: to compile takes time with their square, about 50 ms at 512."""
LIMITS = LLParserLimits(
    max_items_in_row=1_000,
    initial_lexer_fuel=500_000,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
"""About 10 ms to build, 10 ms a token, and 100 MB at the very most; ordinary schemas need a thousandth."""
SPACING: Any = {"whitespace_pattern": " ?"}
"""One space at most between JSON's parts: small models would spend the budget on blank lines."""
CACHED = 64
SHOWN_CHARS = 300


@dataclass(frozen=True, slots=True)
class Structure:
    """What an answer must look like, as it was asked for."""

    kind: Kind
    source: str


class Guide:
    """One answer's place in its structure; see `services.text_worker.sampling.Guide`."""

    def __init__(self, matcher: LLMatcher, vocab: int, ends: NDArray[np.int64]) -> None:
        self._matcher, self._vocab, self._ends = matcher, vocab, ends

    @property
    def complete(self) -> bool:
        """Nothing may follow, or the limits of a step were met (`failure`)."""
        return bool(self._matcher.is_stopped())

    @property
    def failure(self) -> str | None:
        """Why this structure cannot be followed further; None while it can."""
        return _shown(self._matcher.get_error()) if self._matcher.is_error() else None

    def allowed(self) -> NDArray[np.bool_]:
        """See the protocol; only the end where nothing may follow."""
        if not self.complete:
            mask = np.frombuffer(self._matcher.compute_logit_bias(), dtype=np.uint8) != 0
            if mask.any() and not self._matcher.is_error():
                return np.pad(mask, (0, self._vocab - len(mask)))
        mask = np.zeros(self._vocab, dtype=np.bool_)
        mask[self._ends] = True
        return mask

    def accept(self, token: int) -> None:
        """Moves on by a token that was allowed."""
        self._matcher.consume_token(token)

    def follow(self, tokens: tuple[int, ...]) -> int:
        """Moves on by tokens of an answer that goes on; gives the number that fitted."""
        return int(self._matcher.try_consume_tokens(list(tokens)))


class Structures:
    """Compiles structures for one tokenizer, the same one only once while it is remembered. Thread-safe; blocks."""

    def __init__(self, tokenizer: TextTokenizer, vocab: int) -> None:
        self._tokenizer, self._vocab = tokenizer, vocab
        self._lock = threading.Lock()
        self._words: LLTokenizer | None = None
        self._compiled: OrderedDict[Structure, LLMatcher] = OrderedDict()

    def guide(self, structure: Structure, resumed: tuple[int, ...] = ()) -> Guide:
        """A guide at its start, or behind the tokens that were sent already.

        One structure is compiled at a time, for a fraction of a second at most. Raises BadInput naming the field.
        """
        if not self._tokenizer.eos_ids:
            raise BadInput("structure", "this model has no end token, so a structured answer could not end")
        check(structure)
        guide = Guide(self._matcher(structure), self._vocab, np.array(sorted(self._tokenizer.eos_ids)))
        if guide.follow(resumed) < len(resumed):
            raise BadInput("resume.token_ids", "do not fit the structure")
        return guide

    def _matcher(self, structure: Structure) -> LLMatcher:
        with self._lock:
            matcher = self._compiled.get(structure) or self._compile(structure)
            self._compiled[structure] = matcher
            self._compiled.move_to_end(structure)
            if len(self._compiled) > CACHED:
                self._compiled.popitem(last=False)
            return matcher.deep_copy()

    def _compile(self, structure: Structure) -> LLMatcher:
        if self._words is None:  # takes a second for a large vocabulary, so only where it is asked for
            ends = sorted(self._tokenizer.eos_ids)
            self._words = LLTokenizer(self._tokenizer.tokenizer.to_str(), n_vocab=self._vocab, eos_token=ends)
        matcher = LLMatcher(self._words, _grammar(structure), log_level=0, limits=LIMITS)
        first = b"" if matcher.is_error() else matcher.compute_logit_bias()  # some bombs go off only here
        if matcher.is_error():
            raise BadInput(_field(structure), _shown(matcher.get_error()) or "cannot be followed")
        if matcher.is_stopped() or not any(first):
            raise BadInput(_field(structure), "allows no text at all")
        return matcher


def check(structure: Structure) -> None:
    """Sizes, before anything is compiled. Raises BadInput naming the field and the limit."""
    field, most = _field(structure), MAX_BYTES[structure.kind]
    if not 1 <= len(structure.source.encode()) <= most:
        raise BadInput(field, f"must be 1 to {most} bytes, not {len(structure.source.encode())}")
    if structure.kind == "json_schema":
        _check_schema(field, structure.source)


def _check_schema(field: str, source: str) -> None:
    try:
        schema = json.loads(source)
    except RecursionError as error:
        raise BadInput(field, f"must be at most {MAX_DEPTH} levels deep") from error
    except ValueError as error:
        raise BadInput(field, f"is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise BadInput(field, "must be a JSON object")
    nodes, level = 0, [schema]
    for _ in range(MAX_DEPTH):
        nodes += len(level)
        widest = max((len(node) for node in level if isinstance(node, dict)), default=0)
        if nodes > MAX_NODES or widest > MAX_PROPERTIES:
            raise BadInput(field, f"must have at most {MAX_NODES} parts and {MAX_PROPERTIES} fields in an object")
        level = [part for node in level for part in _parts(node)]
        if not level:
            return
    raise BadInput(field, f"must be at most {MAX_DEPTH} levels deep")


def _parts(node: Any) -> list[Any]:
    return list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []


def _grammar(structure: Structure) -> str:
    match structure.kind:
        case "json_schema":
            return str(LLMatcher.grammar_from_json_schema(structure.source, defaults=SPACING))
        case "regex":
            return str(LLMatcher.grammar_from_regex(structure.source))
        case "grammar":
            return str(LLMatcher.grammar_from_lark(structure.source))


def _field(structure: Structure) -> str:
    return f"structure.{structure.kind}"


def _shown(problem: str) -> str:
    """The parser's first lines."""
    return " ".join(problem.split("<state>")[0].split())[:SHOWN_CHARS]
