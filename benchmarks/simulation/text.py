"""A text worker's steps, several tokens at a time: what is simulated in the place of `TextScheduler`.

The rungs of a request are the text worker's own (`goals_of`), and so is the rule that a text past its floor may end
after any step. What is left out, to play a million requests in minutes: one step stands for a stride of several decode
iterations (other work on a shared device waits that much longer for its end), nobody's prefill is cut into chunks, the
KV cache has always room, and no text ends before it has all the tokens that its rung means.
"""

import math
from collections.abc import Sequence as Several
from dataclasses import dataclass, replace

from headway.cost import ZERO, Cost, Foreign, Load, StepCurve
from headway.engine import Batch
from headway.planning import Job, Option, Setting
from headway.quality import Rung
from headway.ticket import Ticket
from services.text_worker.sequence import Goal, goals_of


@dataclass(slots=True, eq=False)
class VirtualText:
    """One admitted text."""

    ticket: Ticket
    tokens: int
    """New tokens asked for."""
    prefill: Cost
    goals: tuple[Goal, ...]
    stride: int
    """Tokens of a step."""
    done: int = 0
    """Steps."""
    job: Job | None = None
    """What is left to do; None when a step has changed it."""

    @property
    def over_floor(self) -> bool:
        return self.done * self.stride >= self.goals[-1].tokens

    def rung_at(self, steps: int) -> Rung:
        """The best rung that so many steps reach, with their own quality."""
        tokens = steps * self.stride
        rung = next((goal.rung for goal in self.goals if goal.tokens <= tokens), self.goals[-1].rung)
        return replace(rung, quality=min(1.0, tokens / self.tokens))


def virtual_text(ticket: Ticket, tokens: int, prefill: Cost, stride: int) -> VirtualText:
    """A text that nothing was done of."""
    return VirtualText(ticket, tokens, prefill, goals_of(ticket.wish, tokens), stride)


@dataclass(frozen=True, slots=True)
class Decode(Batch[VirtualText]):
    """One step: a stride of tokens for each work, and the prefill of those that begin."""

    ends: frozenset[int]
    """Keys of the works that are whole when it is done."""

    def after(self, job: Job) -> Job | None:
        """See `headway.engine.Batch`."""
        if job.key in self.ends:
            return None
        less = tuple(
            replace(option, load=replace(option.load, setup=ZERO, steps_left=option.load.steps_left - 1))
            for option in job.options
            if option.load.steps_left > 1
        )
        return replace(job, options=less) if less else None


@dataclass(frozen=True, slots=True)
class DecodeScheduler:
    """A `headway.engine.Scheduler`: the most urgent texts decode together."""

    curve: StepCurve
    """Of a step of a stride of tokens, by texts in it."""
    planning: Setting

    def setting(self, now_s: float, foreign: Foreign, scale: Cost) -> Setting:
        return replace(self.planning, now_s=now_s, foreign=foreign, scale=scale)

    def job(self, work: VirtualText, now_s: float) -> Job:
        if work.job is None:
            work.job = self._job(work)
        return work.job

    def _job(self, work: VirtualText) -> Job:
        ticket = work.ticket
        ends = {math.ceil(goal.tokens / work.stride) for goal in work.goals}
        if work.over_floor:
            ends.add(work.done + 1)
        setup = ZERO if work.done else work.prefill
        options = tuple(
            Option(work.rung_at(end), Load(ticket.budget.due_s, 1, end - work.done, setup))
            for end in sorted(ends, reverse=True)
            if end > work.done
        )
        return Job(ticket.key, ticket.wish.priority, ticket.budget.due_s, ticket.target_s, options)

    def next_batch(self, works: Several[VirtualText], now_s: float, scale: Cost) -> Decode | None:
        taken = tuple(works[: self.planning.max_batch])
        if not taken:
            return None
        predicted = sum((work.prefill for work in taken if not work.done), self.curve.at(len(taken)))
        ends = frozenset(work.ticket.key for work in taken if _steps_left(work) == 1)
        return Decode("decode", taken, len(taken), predicted, ends)


def _steps_left(work: VirtualText) -> int:
    choice = work.ticket.choice
    assert choice is not None  # the loop plans every work before it asks for a step
    return choice.option.load.steps_left
