"""Speculation: what may follow is guessed, from what a text holds already or by a small model, and checked in one step.

The last few tokens are looked for further up in prompt and answer; what followed there is drafted (prompt lookup
decoding, Saxena 2023). A draft model guesses where one is configured: see `drafting`. A step runs the newest token and
its drafts as one chunk, with logits for each, and draws a token for each row as it would have been drawn alone:
greedily, or by the noise of its seed and position. Drafts count as long as they are the tokens that are drawn; so an
answer is the same with and without, and no test of acceptance (Leviathan et al. 2023) is needed. Pure but for what
`Lookup` and `Acceptance` remember.
"""

from collections.abc import Callable
from collections.abc import Sequence as Several
from dataclasses import dataclass
from typing import Literal

Mode = Literal["off", "lookup", "draft", "auto"]
MOST_DRAFTS = 7
"""With the newest token, as many rows as attention takes together."""
NGRAMS = (4, 2)
"""So many last tokens are looked for, the longer run first."""
MOST_INDEXED = 16_384
"""Tokens of one sequence that are remembered at most, the newest; so memory is bounded whatever the context."""
_ROUNDING = 1e-9


class Lookup:
    """Where short runs of one growing sequence's tokens were followed by more, last."""

    def __init__(self) -> None:
        self._followed_at: dict[tuple[int, ...], int] = {}
        self._first = self._indexed = 0

    def drafts(self, tokens: Several[int], most: int) -> tuple[int, ...]:
        """`most` tokens that may follow, or none; `tokens` are those of the last call, or go on from them.

        A run that reaches the end repeats: after "a b a b" comes "a b a b ..", however much is asked for.
        """
        self._index(tokens)
        for length in NGRAMS:
            place = self._followed_at.get(tuple(tokens[-length:]))
            if place is not None and most > 0:
                found = tokens[place : place + most]
                return tuple(found[i % len(found)] for i in range(most))
        return ()

    def _index(self, tokens: Several[int]) -> None:
        """Remembers every run that something follows; so the last tokens never find themselves."""
        if len(tokens) - self._first > MOST_INDEXED:
            self._followed_at.clear()
            self._first = self._indexed = len(tokens) - MOST_INDEXED // 2
        for end in range(self._indexed, len(tokens)):
            for length in NGRAMS:
                if end - self._first >= length:
                    self._followed_at[tuple(tokens[end - length : end])] = end
        self._indexed = len(tokens)


@dataclass(slots=True)
class Acceptance:
    """How often one sequence's drafts are right: a share of those judged, of which the newest count most.

    Evidence fades with every step, those without drafts too: what failed is tried again after a while.
    """

    right: float = 0.0
    judged: float = 0.0

    FADING = 0.97
    DOUBT = 2.0
    """Without evidence every other draft is expected to be right, as if so many had been judged."""

    def observe(self, drafted: int, accepted: int) -> None:
        """After a step: the first `accepted` of the drafts were right. What stands behind a wrong one says nothing."""
        self.right = self.right * self.FADING + accepted
        self.judged = self.judged * self.FADING + min(drafted, accepted + 1)

    @property
    def chance(self) -> float:
        """That a draft is right if all before it are; between 0 and 1."""
        return (self.right + self.DOUBT / 2) / (self.judged + self.DOUBT)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A decode step that could take drafts."""

    most: int
    """Drafts that it could take."""
    chance: float
    patience_ms: float
    """How much longer the step may take for them, so that nobody's deadline is in danger."""
    making_ms: float = 0.0
    """What each draft takes before the step."""


def least_chance(decodes: int, cost_ms: Callable[[int], float]) -> float:
    """The chance that the likeliest draft must be over for any number of drafts to bring more tokens a millisecond.

    See `worth`. So many rows bring at most that chance each, and that many sequences get a token without them.
    """
    plain_ms = cost_ms(0)
    most = decodes * MOST_DRAFTS
    return min((cost_ms(rows) / plain_ms - 1) * decodes / rows for rows in range(1, most + 1)) - _ROUNDING


def worth(
    candidates: Several[Candidate],
    decodes: int,
    cost_ms: Callable[[int], float],
    bound_ms: Callable[[int], float],
    *,
    at_any_cost: bool,
) -> list[int]:
    """How many drafts each candidate takes: those with which the step brings the most tokens a millisecond.

    decodes: sequences that get a token in any case. cost_ms, bound_ms: what the step takes with so many draft rows, as
    expected and at most. A draft brings a token with the chance that it and all before it are right. `at_any_cost`
    takes all that deadlines bear.
    """
    rows = sorted(
        (-(candidate.chance**depth), place)
        for place, candidate in enumerate(candidates)
        for depth in range(1, candidate.most + 1)
    )
    taken, tokens, patience_ms, made_ms = 0, float(decodes), float("inf"), 0.0
    best_rate, plain_bound_ms = tokens / cost_ms(0), bound_ms(0)
    at_most = plain_bound_ms / cost_ms(0)
    for count, (gain, place) in enumerate(rows, start=1):
        patience_ms = min(patience_ms, candidates[place].patience_ms)
        made_ms += candidates[place].making_ms
        if bound_ms(count) - plain_bound_ms + made_ms * at_most > patience_ms:
            break
        tokens -= gain
        rate = tokens / (cost_ms(count) + made_ms)
        if at_any_cost or rate > best_rate:
            taken, best_rate = count, rate
    chosen = [place for _, place in rows[:taken]]
    return [chosen.count(place) for place in range(len(candidates))]
