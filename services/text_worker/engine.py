"""Runs the text engine's steps: spans through the model, tokens drawn, texts cut where they end."""

from collections.abc import Callable
from collections.abc import Sequence as Several
from dataclasses import dataclass, replace
from itertools import islice, takewhile

from torch import Tensor

from headway.deadline import Clock
from headway.engine import Batch
from headway.errors import BadInput
from headway.prefix import BLOCK_TOKENS
from headway.ticket import Event, Finished, Stage, Ticket
from headway.v1 import text_pb2
from services.text_worker.backend import Model, Span
from services.text_worker.costs import TextCosts
from services.text_worker.drafting import Drafter
from services.text_worker.drawing import draw
from services.text_worker.kv.pages import Pages
from services.text_worker.kv.store import KvStore
from services.text_worker.lengths import LengthModel
from services.text_worker.sampling import Drawn
from services.text_worker.scheduler import Part, TextBatch
from services.text_worker.sequence import Delta, Sequence, ending_of

Events = list[tuple[Ticket, Event]]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step brought: the parts that were run and the drawn tokens of each (none: not at its end yet)."""

    ran: tuple[tuple[Part, tuple[Drawn, ...]], ...]
    late: tuple[Sequence, ...]
    """Sequences that this step would have made late; they end as they are."""


class TextEngine:
    """One model over one KV cache. `run`, `apply` and `release` belong to the engine's thread."""

    def __init__(
        self,
        model: Model,
        store: KvStore,
        costs: TextCosts,
        *,
        clock: Clock,
        lengths: LengthModel | None = None,
        told: Callable[[int, int], None] = lambda drafted, accepted: None,
        drafter: Drafter | None = None,
    ) -> None:
        """`lengths` is told of every text that ends, `told` of every sequence's drafts in a step: all, and accepted.

        `drafter`: makes the drafts that a step leaves to it.
        """
        self._drafter = drafter
        self._model, self._store, self._costs, self._told = model, store, costs, told
        self._clock, self._lengths = clock, lengths or LengthModel()

    def run(self, batch: Batch[Sequence]) -> StepResult:
        """One forward pass over every part that its deadline still bears; a token is drawn for those at their end."""
        assert isinstance(batch, TextBatch)
        late = (*batch.ending, *self._late(batch))
        parts = [part for part in batch.parts if part.sequence not in late]
        make_room(self._store, parts, batch.evicted)
        if not parts:
            return StepResult((), late)
        restored = [part for part in parts if part.restored]
        for part in restored:
            take_in(self._store, part)
        ran: list[tuple[Part, tuple[Drawn, ...]]] = [(part, ()) for part in restored]
        if computed := [part for part in parts if not part.restored]:
            computed = self._with_drafts(computed)
            logits = self._model.forward([_span(part) for part in computed], self._store.pages)  # [wanted, vocab]
            ran += zip(computed, drawn_tokens(computed, logits), strict=True)
        return StepResult(tuple(ran), late)

    def apply(self, batch: Batch[Sequence], result: StepResult, now_s: float) -> Events:
        """See `headway.engine.Engine`."""
        events: Events = []
        for sequence in result.late:
            events += self._end(sequence, text_pb2.FINISH_REASON_DEADLINE, now_s, None)
        for part, drawn in result.ran:
            self._store.computed(part.sequence.kv, part.sequence.tokens, part.count)
            if part.restored and part.sequence.ticket.steps_executed == 0:
                part.sequence.cached_tokens += part.count
            if drawn:
                part.sequence.coming = None
                events += self._take(part.sequence, drawn, now_s)
                self._settle_drafts(part, len(drawn) - 1)
        return events

    def release(self, work: Sequence) -> None:
        """Gives the sequence's blocks back."""
        self._store.release(work.kv)
        if self._drafter is not None:
            self._drafter.release(work)

    def _with_drafts(self, parts: list[Part]) -> list[Part]:
        """The parts with the drafts that are left to the small model."""
        wanted = [(part.sequence, part.guesses) for part in parts if part.guesses]
        if self._drafter is None or not wanted:
            return parts
        made = iter(self._drafter.drafts(wanted))
        return [replace(part, drafts=next(made)) if part.guesses else part for part in parts]

    def _late(self, batch: TextBatch) -> tuple[Sequence, ...]:
        """Judged here, and not when planned, because the wait for the device comes in between."""
        end_s = self._clock() + batch.bound_ms / 1000
        works = (part.sequence for part in batch.parts)
        return tuple(work for work in works if work.over_floor and end_s > work.ticket.budget.due_s)

    def _settle_drafts(self, part: Part, accepted: int) -> None:
        """Of the drafts' keys and values those of tokens that the answer took are kept, and no block beyond them."""
        work = part.sequence
        source = work.guessing if part.guesses else work.acceptance
        for each in (work.guessing, work.acceptance):
            each.observe(*((len(part.drafts), accepted) if each is source else (0, 0)))
        if part.drafts or part.guesses:  # room was made for guesses even where none came
            taken = len(work.tokens) - part.start - part.count  # fewer than were accepted where the answer ended
            self._store.computed(work.kv, work.tokens, min(accepted, taken))
            self._store.trim(work.kv)
            self._told(len(part.drafts), accepted)

    def _take(self, sequence: Sequence, drawn: tuple[Drawn, ...], now_s: float) -> Events:
        """Adds the tokens of a step, and ends the sequence where its text, its length or its plan ends."""
        ticket, delta = sequence.ticket, None
        sequence.first_token_s = sequence.first_token_s or now_s
        for one in drawn:
            ticket.steps_executed += 1
            if sequence.sampler.failure is not None:
                return [(ticket, BadInput("structure", sequence.sampler.failure))]
            if one.token in sequence.end_ids:
                return self._end(sequence, text_pb2.FINISH_REASON_STOP, now_s, delta)
            delta = sequence.take(one) if delta is None else delta.with_following(sequence.take(one))
            if (reason := sequence.reason_to_end) is not None:
                return self._end(sequence, reason, now_s, delta)
        if sequence.over_floor and (_planned_end(ticket) or ticket.budget.remaining_s(now_s) <= 0):
            return self._end(sequence, text_pb2.FINISH_REASON_DEADLINE, now_s, delta)
        return [(ticket, delta)]

    def _end(self, sequence: Sequence, reason: text_pb2.FinishReason, now_s: float, last: Delta | None) -> Events:
        """The last delta, with the text that was held back, and `Finished` with the `Ending`."""
        ticket = sequence.ticket
        held = sequence.stops.push(sequence.detokenizer.flush()) + sequence.stops.flush()
        delta = last or Delta((), sequence.new_tokens, "")
        delta = replace(delta, text=delta.text + held)
        ticket.stages.extend(self._stages(sequence, now_s))
        self._lengths.observe(
            prompt_tokens=sequence.prompt_tokens,
            begun=sequence.resumed_tokens,
            new_tokens=sequence.new_tokens,
            ended=reason in (text_pb2.FINISH_REASON_STOP, text_pb2.FINISH_REASON_STOP_STRING),
        )
        finished = Finished(ending_of(sequence, reason))
        return [(ticket, delta), (ticket, finished)] if delta.token_ids or delta.text else [(ticket, finished)]

    def _stages(self, sequence: Sequence, now_s: float) -> list[Stage]:
        """Queue, prefill and decode; what other sequences in the batches add is predicted under queue."""
        ticket = sequence.ticket
        assert ticket.plan is not None
        prefill_ms = self._costs.prefill_cost(sequence.prompt_tokens + sequence.resumed_tokens).mean_ms
        decode_ms = self._costs.decode.at(1).mean_ms * ticket.plan.steps
        queue_ms = max(0.0, ticket.predicted.mean_ms - prefill_ms - decode_ms)
        started_s = ticket.started_s or now_s
        first_s = sequence.first_token_s or now_s
        return [
            Stage("queue", queue_ms, ticket.admitted_s, started_s),
            Stage("prefill", prefill_ms, started_s, first_s),
            Stage("decode", decode_ms, first_s, now_s),
        ]


def _planned_end(ticket: Ticket) -> bool:
    """The plan that this step was run under wanted no token after it."""
    assert ticket.choice is not None
    return ticket.choice.option.load.steps_left <= 1


def _span(part: Part) -> Span:
    sequence = part.sequence
    tokens = sequence.tokens[part.start : part.start + part.count]
    tokens += part.drafts
    return Span(sequence.kv.blocks, part.start, tokens, wanted=1 + len(part.drafts))


def drawn_tokens(parts: Several[Part], logits: Tensor) -> list[tuple[Drawn, ...]]:
    """Each part's tokens: none before its sequence's end, else one, and one more for each draft that was right.

    logits: fp32 [wanted, vocab], a row for the newest token of each part and one for each of its drafts.
    """
    if not any(part.drafts for part in parts):  # nearly always
        return _drawn_singly(parts, logits)
    wanted = [(part, ahead) for part in parts for ahead in range(1 + len(part.drafts))]
    rows = [row for row, (part, _) in enumerate(wanted) if part.draws]
    samplers = [part.sequence.sampler.ahead(ahead) for part, ahead in (wanted[row] for row in rows)]
    drawn = iter(draw(_rows_of(logits, rows), samplers))
    return [_accepted(part, list(islice(drawn, 1 + len(part.drafts)))) if part.draws else () for part in parts]


def _drawn_singly(parts: Several[Part], logits: Tensor) -> list[tuple[Drawn, ...]]:
    """`drawn_tokens` where nobody has drafts: a row for each part, and at most one token."""
    rows = [row for row, part in enumerate(parts) if part.draws]
    drawn = iter(draw(_rows_of(logits, rows), [parts[row].sequence.sampler for row in rows]))
    return [(next(drawn),) if part.draws else () for part in parts]


def _rows_of(logits: Tensor, rows: list[int]) -> Tensor:
    """Nearly always all of them are drawn for, and the largest tensor of a step need not be copied."""
    return logits if len(rows) == len(logits) else logits[rows]


def _accepted(part: Part, drawn: Several[Drawn]) -> tuple[Drawn, ...]:
    """The tokens up to the first that is not the one drafted in its place."""
    right = takewhile(lambda pair: pair[0].token == pair[1], zip(drawn, part.drafts, strict=False))
    return tuple(drawn[: 1 + len(list(right))])


def take_in(store: KvStore, part: Part) -> None:
    """Writes what another worker computed into blocks that the sequence has room in, and holds alone."""
    assert isinstance(store.pages, Pages)
    place = part.start // BLOCK_TOKENS
    for block, content in zip(part.sequence.kv.blocks[place:], part.restored, strict=False):
        store.pages.write(block, content)


def make_room(store: KvStore, parts: Several[Part], evicted: Several[Sequence]) -> None:
    """Blocks for every part: what others computed is taken over before anything is given up or out."""
    for part in parts:
        if part.adopted:
            store.adopt(part.sequence.kv, part.adopted, part.start)
            if part.sequence.ticket.steps_executed == 0:
                part.sequence.cached_tokens = min(part.start, part.sequence.prompt_tokens)
    for sequence in evicted:
        store.release(sequence.kv)
    for part in parts:
        store.reserve(part.sequence.kv, part.end)
