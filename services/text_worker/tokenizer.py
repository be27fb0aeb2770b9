"""Text to tokens and back: encoding, chat template, and detokenisation that never splits a code point."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from services.text_worker.chat_template import ChatTemplate, load_chat_template
from services.text_worker.model.architecture import Architecture
from services.text_worker.model.config import CheckpointError, Fields, read_json
from services.text_worker.sampling import Sampling

MAX_TOKENIZER_BYTES = 256 * 2**20
REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class TextTokenizer:
    """A checkpoint's tokenizer. `template` is None for one without a chat template."""

    tokenizer: Tokenizer
    eos_ids: frozenset[int]
    template: ChatTemplate | None
    longest_token_chars: int
    """A text of more characters than this for each token of room cannot fit."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids; `special` adds what the checkpoint puts around a text, such as its begin token."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of the messages in the checkpoint's template, ready for the answer. Raises ValueError."""
        if self.template is None:
            raise ValueError("messages: this model has no chat template")
        return self.encode(self.template.render(messages), special=False)

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of every token."""
        found: dict[str, int] = self.tokenizer.get_vocab(with_added_tokens=True)
        return found

    def decode(self, ids: list[int]) -> str:
        """Text of the ids, special tokens left out."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


def load_tokenizer(folder: Path, architecture: Architecture) -> TextTokenizer:
    """Reads tokenizer.json, the chat template and generation_config.json. Raises CheckpointError."""
    path = folder / "tokenizer.json"
    try:
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise CheckpointError(f"tokenizer.json: larger than {MAX_TOKENIZER_BYTES} bytes")
        tokenizer = Tokenizer.from_file(str(path))
    except CheckpointError:
        raise
    except Exception as error:  # the library raises no narrower type for what it cannot parse
        raise CheckpointError(f"tokenizer.json: cannot be read: {error}") from error
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if not 0 <= largest < architecture.vocab:
        raise CheckpointError(f"tokenizer.json: ids up to {largest} do not fit vocab_size {architecture.vocab}")
    generation = _optional_json(folder / "generation_config.json")
    stated = Fields(generation).indices("eos_token_id", architecture.vocab)
    longest = max(len(tokenizer.decode([i], skip_special_tokens=False)) for i in range(largest + 1))
    return TextTokenizer(tokenizer, stated or architecture.eos_ids, load_chat_template(folder), max(1, longest))


def load_sampling(folder: Path) -> Sampling:
    """How generation_config.json wants tokens drawn; greedy unless it says `do_sample`. Raises CheckpointError."""
    stated = _optional_json(folder / "generation_config.json")
    try:
        repetition = float(stated.get("repetition_penalty") or 1.0)
        if not stated.get("do_sample"):
            return Sampling(repetition_penalty=repetition)
        known = {"temperature": 1.0, "top_k": 50, "top_p": 1.0} | {k: v for k, v in stated.items() if v is not None}
        return Sampling(
            temperature=float(known["temperature"]),
            top_k=int(known["top_k"]) or None,
            top_p=float(known["top_p"]),
            min_p=float(known.get("min_p", 0.0)),
            repetition_penalty=repetition,
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"generation_config.json: {error}") from error


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


class Detokenizer:
    """One answer's text in deltas: none ends inside a code point, and together they are the decode.

    A token's text can depend on those just before it (a leading space, half a code point), so each is decoded
    with the last part that was already given out.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # first id of the part that was given out last
        self._given = 0  # first id not given out yet

    def push(self, ids: Sequence[int]) -> str:
        """The text that these tokens complete; empty while a code point is open."""
        self._ids.extend(ids)
        delta = self._pending()
        if not delta or delta.endswith(REPLACEMENT):
            return ""
        self._context, self._given = self._given, len(self._ids)
        return delta

    def flush(self) -> str:
        """What is left at the end: bytes that never became a code point come as U+FFFD."""
        delta = self._pending()
        self._context, self._given = self._given, len(self._ids)
        return delta

    def _pending(self) -> str:
        ids, decode = self._ids[self._context :], self._tokenizer.decode
        before = decode(ids[: self._given - self._context])
        return decode(ids)[len(before) :]


class StopStrings:
    """Cuts a streamed text at the first of some strings, holding back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, delta: str) -> str:
        """The text that is safe to give out; once a stop was met `stopped` is set and nothing more comes."""
        if not self._stops or self.stopped:
            return "" if self.stopped else delta
        text = self._held + delta
        met = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stops if stop in text]
        if met:  # the stop that is complete first, so that how the text was cut into deltas does not matter
            self.stopped, self._held = True, ""
            return text[: min(met)[1]]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, at the end of a text that met no stop."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` without completing it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
