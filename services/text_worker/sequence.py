"""The noun of the text engine: one request's tokens, where they are cached, and how far they are meant to go."""

import math
from dataclasses import dataclass, field, replace

from headway.quality import Ladder, Rung, Wish
from headway.ticket import Ticket
from headway.v1 import text_pb2
from services.text_worker.kv.coming import Coming
from services.text_worker.kv.store import Holding
from services.text_worker.sampling import Drawn, Sampler
from services.text_worker.speculation import Acceptance, Lookup
from services.text_worker.tokenizer import Detokenizer, StopStrings

DEFAULT_FLOOR_TOKENS = 16
LADDER = Ladder(
    (
        Rung("100%", 1.0, token_share=1.0),
        Rung("75%", 0.75, token_share=0.75),
        Rung("50%", 0.5, token_share=0.5),
        Rung("25%", 0.25, token_share=0.25),
        Rung("floor", 0.0, token_share=0.0),
    )
)


@dataclass(frozen=True, slots=True)
class Goal:
    """A rung, and the new tokens that it means for one request."""

    rung: Rung
    tokens: int


def goals_of(wish: Wish, max_tokens: int) -> tuple[Goal, ...]:
    """What each allowed rung means for a request of `max_tokens`, most tokens first, no number twice.

    No rung but one that was named goes under the floor: the caller's, else `DEFAULT_FLOOR_TOKENS`. Each has the quality
    that its tokens are worth.
    """
    least = 1 if wish.exact and wish.allowed[0].token_share else wish.min_tokens or DEFAULT_FLOOR_TOKENS
    goals: dict[int, Goal] = {}
    for rung in wish.allowed:
        tokens = min(max_tokens, max(least, math.ceil((rung.token_share or 0.0) * max_tokens)))
        goals.setdefault(tokens, Goal(replace(rung, quality=tokens / max_tokens), tokens))
    return tuple(goals.values())


@dataclass(slots=True, eq=False)
class Sequence:
    """One request on its way through the engine, whose thread alone writes it after admission."""

    ticket: Ticket
    tokens: list[int]
    """Prompt, then new tokens."""
    prompt_tokens: int
    max_tokens: int
    """New tokens asked for, resumed ones included."""
    resumed_tokens: int
    """New tokens that an earlier answer brought already."""
    goals: tuple[Goal, ...]
    sampler: Sampler
    end_ids: frozenset[int]
    """Tokens that end the answer and are no part of it."""
    detokenizer: Detokenizer
    stops: StopStrings
    had_ended: text_pb2.FinishReason | None = None
    """Why the answer was whole already with the tokens that it goes on from; None: it goes on."""
    kv: Holding = field(default_factory=Holding)
    """What the KV cache holds of it."""
    coming: Coming | None = None
    """Blocks of its prompt that are on their way from another worker; None: none are."""
    cached_tokens: int = 0
    """Prompt tokens whose keys and values it did not compute: they were cached here, or elsewhere and restored."""
    first_token_s: float | None = None
    lookup: Lookup = field(default_factory=Lookup)
    acceptance: Acceptance = field(default_factory=Acceptance)
    """Of drafts that were looked up."""
    guessing: Acceptance = field(default_factory=Acceptance)
    """Of drafts that a small model made."""

    @property
    def new_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def uncomputed(self) -> int:
        """Tokens to run until the next one can be drawn; at least 1."""
        return len(self.tokens) - self.kv.computed

    @property
    def complete(self) -> bool:
        """All that the best allowed rung means is there."""
        return self.new_tokens >= self.goals[0].tokens

    @property
    def reason_to_end(self) -> text_pb2.FinishReason | None:
        """Why nothing may follow the tokens that are there, whatever the time; None: something may."""
        if self.stops.stopped:
            return text_pb2.FINISH_REASON_STOP_STRING
        if self.sampler.complete:
            return text_pb2.FINISH_REASON_STOP
        return text_pb2.FINISH_REASON_LENGTH if self.complete else None

    @property
    def over_floor(self) -> bool:
        """It may end now without breaking what the caller was promised at least."""
        return self.new_tokens >= self.goals[-1].tokens

    def take(self, drawn: Drawn) -> "Delta":
        """Adds a drawn token; gives it with the text that it completes."""
        self.tokens.append(drawn.token)
        self.sampler.accept(drawn.token)
        text = self.stops.push(self.detokenizer.push([drawn.token]))
        told = () if self.sampler.sampling.logprobs is None else (drawn,)
        return Delta((drawn.token,), self.new_tokens - 1, text, told)

    def rung_at(self, tokens: int) -> Rung:
        """The best rung that `tokens` new tokens reach (the lowest allowed one before that), with their own quality."""
        rung = next((goal.rung for goal in self.goals if goal.tokens <= tokens), self.goals[-1].rung)
        quality = min(1.0, tokens / self.max_tokens)
        if rung.quality == quality:  # a goal's own has it already
            return rung
        return Rung(rung.label, quality, token_share=rung.token_share)


@dataclass(frozen=True, slots=True)
class Delta:
    """New tokens and the text that they complete; `offset` counts from the answer's first new token."""

    token_ids: tuple[int, ...]
    offset: int
    text: str
    logprobs: tuple[Drawn, ...] = ()
    """One a token where they were asked for."""

    def with_following(self, later: "Delta") -> "Delta":
        """Both as one."""
        return Delta(
            self.token_ids + later.token_ids, self.offset, self.text + later.text, self.logprobs + later.logprobs
        )


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a sequence ended, and what its quality then is."""

    reason: text_pb2.FinishReason
    rung: Rung
    quality: float


def ending_of(sequence: Sequence, reason: text_pb2.FinishReason) -> Ending:
    """Quality 1 for a text that ended by itself or is as long as asked, else the share of tokens."""
    natural = reason in (text_pb2.FINISH_REASON_STOP, text_pb2.FINISH_REASON_STOP_STRING)
    quality = 1.0 if natural else min(1.0, sequence.new_tokens / sequence.max_tokens)
    whole = quality == 1.0 and not sequence.ticket.wish.exact
    return Ending(reason, LADDER.top if whole else sequence.rung_at(sequence.new_tokens), quality)
