"""How long texts will be: learned from those that ended, by prompt length. Pure but for what it learns.

A text ends by itself after each token with some chance, its hazard. That is learned for every doubling of the text's
length and of the prompt's, as ends over tokens drawn, so texts that were cut before they ended count too, for the
tokens that they had (the life-table estimate of Cutler and Ederer, 1958). What is left of a text then follows from the
tokens that it has. Without evidence every text takes all its tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

_SPANS = 21
"""Doublings of a text's length; the last has no end."""
_DOUBT_TOKENS = 64
"""So many tokens without an end are added to the evidence of all prompts."""
_SHARED_TOKENS = 256
"""Evidence from all prompts counts as so many tokens of a prompt of any one length."""
_MOST_TOKENS = 8192.0
"""Evidence of one kind beyond this is halved, so that what is learned follows what is asked."""
_NEVER = 1e-9
"""A hazard below this is none."""


@dataclass(slots=True)
class _Evidence:
    ends: float = 0.0
    tokens: float = 0.0

    def add(self, ends: int, tokens: int) -> None:
        self.ends, self.tokens = self.ends + ends, self.tokens + tokens
        if self.tokens > _MOST_TOKENS:
            self.ends, self.tokens = self.ends / 2, self.tokens / 2


class LengthModel:
    """The lengths of one model's answers. One thread at a time may learn; any may ask."""

    def __init__(self) -> None:
        self._all = [_Evidence() for _ in range(_SPANS)]
        self._by_prompt: dict[int, list[_Evidence]] = {}
        self._hazards: dict[int, tuple[float, ...]] = {}

    def observe(self, *, prompt_tokens: int, begun: int, new_tokens: int, ended: bool) -> None:
        """Learns from a text that had `begun` new tokens when it came here and `new_tokens` when it left.

        `ended`: by itself, with no token more; else it was cut, or given up. Mutates the model.
        """
        rows = self._by_prompt.setdefault(_span(prompt_tokens), [_Evidence() for _ in range(_SPANS)])
        for span, first, last in _spans_between(begun, new_tokens + ended):
            ends = int(ended and last == new_tokens + 1)
            for row in (rows[span], self._all[span]):
                row.add(ends, last - first)
        self._hazards = {}

    def left(self, prompt_tokens: int, done: int, mosts: Sequence[int]) -> list[tuple[float, float]]:
        """Mean and variance of the steps that a text of `done` tokens still takes, if cut after each of `mosts`.

        `mosts` rise. The step that ends a text brings no token. With T the cut and S(k) the chance to bring k more
        tokens, the mean is the sum of S(k) over k < T, and the mean square that of (2k + 1) S(k).
        """
        hazards = self._hazard_of(_span(prompt_tokens))
        found, alive, total, squares, place = list[tuple[float, float]](), 1.0, 0.0, 0.0, 0
        for most in mosts:
            for span, first, last in _spans_between(done + place, done + most):
                run, weighted, kept = _run(hazards[span], last - first)
                squares += alive * ((2 * (first - done) + 1) * run + 2 * weighted)
                total, alive = total + alive * run, alive * kept
            place = most
            found.append((total, max(0.0, squares - total * total)))
        return found

    def _hazard_of(self, prompt: int) -> tuple[float, ...]:
        known = self._hazards.get(prompt)
        if known is None:
            rows = self._by_prompt.get(prompt)
            general = [row.ends / (row.tokens + _DOUBT_TOKENS) for row in self._all]
            known = self._hazards[prompt] = (
                tuple(general)
                if rows is None
                else tuple(
                    (row.ends + _SHARED_TOKENS * common) / (row.tokens + _SHARED_TOKENS)
                    for row, common in zip(rows, general, strict=True)
                )
            )
        return known


def _run(hazard: float, tokens: int) -> tuple[float, float, float]:
    """Over so many tokens of one hazard: the sum of S(k), that of k S(k), and the chance to come through."""
    if hazard < _NEVER:
        return float(tokens), tokens * (tokens - 1) / 2, 1.0
    kept: float = (1.0 - hazard) ** tokens
    total = (1.0 - kept) / hazard
    return total, (total - 1.0 - (tokens - 1) * kept) / hazard, kept


def _span(tokens: int) -> int:
    """Which doubling a length lies in."""
    return min(tokens.bit_length(), _SPANS - 1)


def _spans_between(first: int, last: int) -> list[tuple[int, int, int]]:
    """(span, first, last) of the pieces of the positions from `first` up to `last`, which is not in it."""
    found = []
    while first < last:
        span = _span(first)
        end = last if span == _SPANS - 1 else min(last, 1 << span)
        found.append((span, first, end))
        first = end
    return found
