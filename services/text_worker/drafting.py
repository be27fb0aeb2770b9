"""Drafts from a small model, which guesses what the large one will draw (Leviathan et al. 2023, Chen et al. 2023).

It draws from its own logits with the settings, noise and positions of the answer itself, so that a sampled text is
guessed as well as a greedy one; drafts count while they are what the large model draws (see `speculation`).
"""

from collections.abc import Sequence as Several
from dataclasses import dataclass, field

from headway.cost import ZERO, Cost
from services.text_worker.backend import Model, Span
from services.text_worker.costs import TextCosts
from services.text_worker.drawing import draw
from services.text_worker.kv.store import Holding, KvStore, blocks_of
from services.text_worker.sequence import Sequence


@dataclass(slots=True)
class _Line:
    """What the small model's cache holds of one sequence."""

    holding: Holding = field(default_factory=Holding)
    base: int = 0
    """Tokens of the answer that are cached, newest of the last call included."""
    ahead: tuple[int, ...] = ()
    """Guessed tokens that are cached behind them."""

    def known(self, tokens: Several[int]) -> int:
        """How many of `tokens` are cached: those of the last call, and of its guesses the first that were right."""
        count = self.base
        for guessed, token in zip(self.ahead, tokens[self.base :], strict=False):
            if guessed != token:
                break
            count += 1
        return min(count, len(tokens) - 1)


class Drafter:
    """The small model over a KV cache of its own. Belongs to the engine's thread; schedulers only look."""

    def __init__(self, model: Model, store: KvStore, costs: TextCosts) -> None:
        self._model, self._store, self.costs = model, store, costs
        self._lines: dict[int, _Line] = {}  # by the ticket's key

    def lag(self, work: Sequence) -> int:
        """Tokens that it must run before it can guess the next one; at least 1."""
        line = self._lines.get(work.ticket.key)
        return len(work.tokens) - (0 if line is None else line.known(work.tokens))

    def room(self, work: Sequence, count: int) -> int:
        """How many of `count` drafts its context bears; none where its cache is full."""
        line = self._lines.get(work.ticket.key)
        held = 0 if line is None else len(line.holding.blocks)
        bears = max(0, min(count, self._model.context - len(work.tokens) + 1))
        missing = blocks_of(len(work.tokens) + bears) - held
        return bears if missing <= self._store.pool.available else 0

    def catching_up(self, lag: int) -> Cost:
        """What the first guess takes beyond a decode step, for one that has to run so many tokens first."""
        return self.costs.prefill_cost(lag - 1) if lag > 1 else ZERO

    def cost(self, wanted: Several[tuple[int, int]]) -> Cost:
        """Making drafts of a step: for each sequence its lag and how many drafts."""
        catching_up = sum((self.catching_up(lag) for lag, _ in wanted), ZERO)
        most = max((count for _, count in wanted), default=0)
        passes = (sum(count > depth for _, count in wanted) for depth in range(most))
        return catching_up + sum((self.costs.decode.at(size) for size in passes), ZERO)

    def drafts(self, wanted: Several[tuple[Sequence, int]]) -> list[tuple[int, ...]]:
        """As many tokens as each sequence wants that may follow its newest; none where the cache has no room.

        Mutates the cache. A pass for all first guesses, and one for all that come after each.
        """
        begun = [self._begin(work, count) for work, count in wanted]
        found = [list[int]() for _ in wanted]
        spans = [(place, span) for place, span in enumerate(begun) if span is not None]
        while spans:
            logits = self._model.forward([span for _, span in spans], self._store.pages)
            samplers = [wanted[place][0].sampler.ahead(len(found[place])) for place, _ in spans]
            for (place, _), drawn in zip(spans, draw(logits, samplers), strict=True):
                found[place].append(drawn.token)
            going = [(place, span) for place, span in spans if len(found[place]) < wanted[place][1]]
            spans = [(place, Span(span.blocks, span.end, (found[place][-1],))) for place, span in going]
        for (work, _), tokens in zip(wanted, found, strict=True):
            if tokens:
                line = self._lines[work.ticket.key]
                line.base, line.ahead = len(work.tokens), tuple(tokens[:-1])
        return [tuple(tokens) for tokens in found]

    def _begin(self, work: Sequence, count: int) -> Span | None:
        """What is run for the first guess, with room for all of them; None where there is none."""
        if count < 1 or self.room(work, count) < count:
            return None
        line = self._lines.setdefault(work.ticket.key, _Line())
        known = line.known(work.tokens)
        self._store.reserve(line.holding, len(work.tokens) + count)
        return Span(line.holding.blocks, known, work.tokens[known:])

    def release(self, work: Sequence) -> None:
        """Gives back what the cache holds of a sequence. Mutates."""
        line = self._lines.pop(work.ticket.key, None)
        if line is not None:
            self._store.release(line.holding)
