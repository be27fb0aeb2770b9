"""How the next token is drawn: a request's settings, and what one sequence carries from token to token."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

MAX_TEMPERATURE = 10.0
MAX_TOP_K = 2**20
MAX_PENALTY = 2.0
MAX_REPETITION = 10.0
MAX_BIAS = 100.0
MAX_BIASES = 1024
MAX_LOGPROBS = 20
SEED_LIMIT = 2**64


@dataclass(frozen=True)
class Sampling:
    """How to choose: temperature 0 is greedy; the other defaults change nothing.

    Raises ValueError naming the field and the limit.
    """

    temperature: float = 0.0
    top_k: int | None = None
    """Keep the k likeliest."""
    top_p: float = 1.0
    """Keep the likeliest whose probabilities reach this sum."""
    seed: int = 0
    min_p: float = 0.0
    """Keep those at least this share as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens seen in prompt or answer, multiplies negative ones (Keskar et al. 2019)."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens in the answer, once."""
    frequency_penalty: float = 0.0
    """Taken from the logits of tokens in the answer, once for each time."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids and what is added to their logits; no id twice."""
    logprobs: int | None = None
    """Tell each token's log-probability, and those of this many likeliest."""

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        if self.top_k is not None and not 1 <= self.top_k <= MAX_TOP_K:
            raise ValueError(f"top_k: must be from 1 to {MAX_TOP_K}, is {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p: must be over 0 and at most 1, is {self.top_p}")
        if not 0 <= self.seed < SEED_LIMIT:
            raise ValueError(f"seed: must be from 0 to {SEED_LIMIT - 1}, is {self.seed}")
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("repetition_penalty", self.repetition_penalty, 1 / MAX_REPETITION, MAX_REPETITION)
        _within("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
        _within("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise ValueError(f"logprobs: must be from 0 to {MAX_LOGPROBS}, is {self.logprobs}")
        self._check_biases()

    def _check_biases(self) -> None:
        if len(self.logit_bias) > MAX_BIASES:
            raise ValueError(f"logit_bias: must be at most {MAX_BIASES} tokens, is {len(self.logit_bias)}")
        if len({token for token, _ in self.logit_bias}) < len(self.logit_bias):
            raise ValueError("logit_bias: names a token twice")
        for _, bias in self.logit_bias:
            _within("logit_bias", bias, -MAX_BIAS, MAX_BIAS)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        """It matters which tokens came before."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)

    def most(self, vocab: int) -> int:
        """How many of the likeliest of so many tokens top-k keeps."""
        return vocab if self.top_k is None else min(self.top_k, vocab)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN is in no range
        raise ValueError(f"{name}: must be from {low:g} to {high:g}, is {value}")


def uniform(seed: int, position: int) -> float:
    """A token's one random number in [0, 1): Philox (Salmon et al. 2011), key seed, counter position."""
    return float(int(np.random.Philox(key=seed, counter=position).random_raw()) >> 11) * 2.0**-53


class Guide(Protocol):
    """What a structured answer may go on with; see `services.text_worker.structure`."""

    @property
    def complete(self) -> bool:
        """Nothing may follow."""

    @property
    def failure(self) -> str | None:
        """Why it cannot be followed further; None while it can."""

    def allowed(self) -> NDArray[np.bool_]:
        """True for each token [vocab] that may come next; at least one is."""

    def accept(self, token: int) -> None:
        """Takes the token that was drawn."""


class History:
    """Which tokens a sequence has seen, and how often its answer holds each."""

    def __init__(self, prompt: Iterable[int]) -> None:
        self._places = {token: place for place, token in enumerate(dict.fromkeys(prompt))}
        self._ids = np.fromiter(self._places, dtype=np.int64, count=len(self._places))
        self._counts = np.zeros(len(self._ids), dtype=np.int32)

    @property
    def ids(self) -> NDArray[np.int64]:
        """Every token seen, once."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> NDArray[np.int32]:
        """How often the answer holds each of `ids`; 0 for one that only the prompt holds."""
        return self._counts[: len(self._places)]

    def push(self, token: int) -> None:
        """Counts a token of the answer."""
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            room = max(64, place)
            self._ids = np.concatenate((self._ids, np.zeros(room, dtype=np.int64)))
            self._counts = np.concatenate((self._counts, np.zeros(room, dtype=np.int32)))
        self._ids[place] = token
        self._counts[place] += 1


@dataclass(slots=True)
class Sampler:
    """One sequence's drawing: its settings, its place in the noise, what it has seen, and its guide.

    The engine's thread alone writes it after admission.
    """

    sampling: Sampling
    position: int = 0
    """New tokens so far; counts in the noise."""
    history: History | None = None
    """Only where the settings look back."""
    guide: Guide | None = None

    @classmethod
    def start(
        cls, sampling: Sampling, prompt: Iterable[int], resumed: Iterable[int] = (), guide: Guide | None = None
    ) -> "Sampler":
        """Before the first new token, or after those of an answer that goes on. `guide` is past them already."""
        sampler = cls(sampling, history=History(prompt) if sampling.penalised else None)
        for token in resumed:
            sampler._count(token)
        sampler.guide = guide
        return sampler

    @property
    def looks_back(self) -> bool:
        """Which token is drawn depends on the tokens before it, and not on its logits and place alone."""
        return self.history is not None or self.guide is not None

    @property
    def complete(self) -> bool:
        """The structure is; nothing may follow."""
        return self.guide is not None and self.guide.complete

    @property
    def failure(self) -> str | None:
        """Why the structure cannot be followed further."""
        return None if self.guide is None else self.guide.failure

    def ahead(self, count: int) -> "Sampler":
        """What draws the token after `count` more, itself for none; more only where it does not look back."""
        if count == 0:
            return self
        assert not self.looks_back
        return Sampler(self.sampling, self.position + count)

    def accept(self, token: int) -> None:
        """Takes the token that was drawn."""
        self._count(token)
        if self.guide is not None:
            self.guide.accept(token)

    def _count(self, token: int) -> None:
        self.position += 1
        if self.history is not None:
            self.history.push(token)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token, and the model's own log-probabilities (before penalties, temperature and filters) where asked for."""

    token: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()
    """Token ids and log-probabilities, likeliest first."""
