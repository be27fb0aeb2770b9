"""The engine loop in front of a remote server: a step is the wait for the next pieces of all open answers.

So admission, plans, targets, cancelling and learning what steps cost are those of every worker; only the work is done
elsewhere. The server's own batching decides what runs; what it does for others counts as batch beside ours.
"""

from collections.abc import Sequence as Several
from dataclasses import dataclass, replace

from headway.cost import ZERO, Cost, Foreign, Load
from headway.engine import Batch
from headway.errors import HeadwayError
from headway.planning import Job, Option, Setting
from headway.quality import Rung
from headway.ticket import Event, Finished, Stage, Ticket
from headway.v1 import text_pb2
from services.text_worker.costs import TextCosts
from services.text_worker.remote.protocol import Call, Piece
from services.text_worker.remote.streams import Arrived, Streams
from services.text_worker.sequence import LADDER, Delta, Ending, Goal

STRETCH_TOKENS = 4
LONGEST_WAIT_S = 0.25
"""A silent server holds up the end of answers whose time is over for so long at most."""


@dataclass(slots=True, eq=False)
class RemoteSequence:
    """One request on its way through a server, written by the engine's thread after admission."""

    ticket: Ticket
    call: Call
    max_tokens: int
    goals: tuple[Goal, ...]
    started: bool = False
    tokens: int = 0
    """New tokens so far, as far as the server lets them be counted."""
    prompt_tokens: int = 0
    cut: bool = False
    """The server says that the length ended it."""
    first_token_s: float | None = None

    @property
    def over_floor(self) -> bool:
        """It may end now without breaking what the caller was promised at least."""
        return self.tokens >= self.goals[-1].tokens

    def rung_at(self, tokens: int) -> Rung:
        """The best rung that `tokens` new tokens reach, with their own quality."""
        rung = next((goal.rung for goal in self.goals if goal.tokens <= tokens), self.goals[-1].rung)
        return replace(rung, quality=min(1.0, tokens / self.max_tokens))

    def ending(self, reason: text_pb2.FinishReason) -> Ending:
        """Quality 1 for a text that ended by itself or is as long as asked, else the share of tokens."""
        natural = reason in (text_pb2.FINISH_REASON_STOP, text_pb2.FINISH_REASON_STOP_STRING)
        quality = 1.0 if natural else min(1.0, self.tokens / self.max_tokens)
        whole = quality == 1.0 and not self.ticket.wish.exact
        return Ending(reason, LADDER.top if whole else self.rung_at(self.tokens), quality)


@dataclass(frozen=True, slots=True)
class RemoteBatch(Batch[RemoteSequence]):
    """All open answers, and those that their deadline ends now."""

    ending: tuple[RemoteSequence, ...]


class RemoteScheduler:
    """Everything that is admitted runs: the server schedules."""

    def __init__(self, costs: TextCosts, planning: Setting, streams: Streams) -> None:
        self._costs, self._planning, self._streams = costs, planning, streams

    def setting(self, now_s: float, foreign: Foreign, scale: Cost) -> Setting:
        """See `headway.engine.Scheduler`; what the server does for others slows each step as batchmates would."""
        others = self._streams.waiting_elsewhere
        slower = self._costs.decode.at(1 + others).mean_ms / self._costs.decode.at(1).mean_ms
        return replace(self._planning, now_s=now_s, foreign=foreign, scale=scale.times(1).scaled(Cost(slower)))

    def job(self, work: RemoteSequence, now_s: float) -> Job:
        """See `headway.engine.Scheduler`."""
        done, most, due_s = work.tokens, work.goals[0].tokens, work.ticket.budget.due_s
        prefill = ZERO if work.tokens else self._costs.prefill_cost(1)
        totals = {goal.tokens for goal in work.goals if goal.tokens > done}
        if work.over_floor or not totals:
            totals |= {min(done + steps, most) for steps in (STRETCH_TOKENS, 1)} | {done + 1}
        options = tuple(
            Option(work.rung_at(total), Load(due_s, 1, max(1, total - done), prefill))
            for total in sorted(totals, reverse=True)
        )
        return Job(work.ticket.key, work.ticket.wish.priority, due_s, work.ticket.target_s, options)

    def next_batch(self, works: Several[RemoteSequence], now_s: float, scale: Cost) -> RemoteBatch | None:
        """See `headway.engine.Scheduler`."""
        new = sum(not work.started for work in works)
        predicted = self._costs.decode.at(len(works)) + (self._costs.prefill_cost(1) if new else ZERO)
        bound_ms = predicted.scaled(scale).quantile_ms(self._planning.admission_quantile) + self._planning.overhead_ms
        due_s = now_s + bound_ms / 1000
        ending = tuple(work for work in works if work.over_floor and due_s > work.ticket.budget.due_s)
        return RemoteBatch("prefill" if new else "decode", tuple(works), len(works), predicted, ending)


class RemoteEngine:
    """See `headway.engine.Engine`."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    def run(self, batch: Batch[RemoteSequence]) -> list[Arrived]:
        """Asks for the new ones, then waits for what comes next."""
        assert isinstance(batch, RemoteBatch)
        going = [work for work in batch.works if work not in batch.ending]
        for work in going:
            if not work.started:
                self._streams.start(work.ticket.key, work.call)
                work.started = True
        if not going:
            return []
        keys = [work.ticket.key for work in going]
        return self._streams.wait(keys, timeout_s=LONGEST_WAIT_S, grace_s=batch.predicted.mean_ms / 2000)

    def apply(self, batch: Batch[RemoteSequence], result: list[Arrived], now_s: float) -> list[tuple[Ticket, Event]]:
        """See `headway.engine.Engine`."""
        assert isinstance(batch, RemoteBatch)
        works = {work.ticket.key: work for work in batch.works}
        events: list[tuple[Ticket, Event]] = []
        for arrived in result:
            work = works.get(arrived.key)
            if work is not None and not _ended(work, events):
                events += self._take(work, arrived.event, now_s)
        for work in batch.works:
            if not _ended(work, events) and work.over_floor and (work in batch.ending or _spent(work, now_s)):
                events += self._end(work, text_pb2.FINISH_REASON_DEADLINE, now_s)
        return events

    def release(self, work: RemoteSequence) -> None:
        """Closes the answer, so that the server stops working on it."""
        self._streams.cancel(work.ticket.key)

    def _take(
        self, work: RemoteSequence, event: Piece | HeadwayError | None, now_s: float
    ) -> list[tuple[Ticket, Event]]:
        if isinstance(event, HeadwayError):
            return [(work.ticket, event)]
        if event is None:
            full = work.cut or work.tokens >= work.goals[0].tokens  # some servers say "stop" whatever ended it
            return self._end(work, text_pb2.FINISH_REASON_LENGTH if full else text_pb2.FINISH_REASON_STOP, now_s)
        work.cut = work.cut or event.finish == text_pb2.FINISH_REASON_LENGTH
        work.prompt_tokens = event.prompt_tokens or work.prompt_tokens
        if not event.text and not event.token_ids:
            work.tokens = event.completion_tokens or work.tokens
            return []
        work.first_token_s = work.first_token_s or now_s
        delta = Delta(event.token_ids, work.tokens, event.text)
        work.tokens += event.tokens
        work.ticket.steps_executed += 1
        return [(work.ticket, delta)]

    def _end(self, work: RemoteSequence, reason: text_pb2.FinishReason, now_s: float) -> list[tuple[Ticket, Event]]:
        ticket = work.ticket
        predicted_ms, started_s = ticket.predicted.mean_ms, ticket.started_s or now_s
        first_s = work.first_token_s or now_s
        ticket.stages.append(Stage("prefill", 0.0, started_s, first_s))
        ticket.stages.append(Stage("decode", predicted_ms, first_s, now_s))
        return [(ticket, Finished(work.ending(reason)))]


def _ended(work: RemoteSequence, events: Several[tuple[Ticket, Event]]) -> bool:
    return any(ticket is work.ticket and isinstance(event, Finished | HeadwayError) for ticket, event in events)


def _spent(work: RemoteSequence, now_s: float) -> bool:
    return work.ticket.budget.remaining_s(now_s) <= 0
