"""What the text engine runs next, and what the planner must know of each sequence. Pure."""

import math
from collections.abc import Sequence as Several
from dataclasses import dataclass, replace

from headway.cost import ZERO, Cost, Foreign, Load
from headway.engine import Batch
from headway.planning import Job, Option, Setting
from services.text_worker.costs import TextCosts
from services.text_worker.lengths import LengthModel
from services.text_worker.sequence import Sequence

STRETCH_TOKENS = 4  # how far a sequence past its floor is planned on, beside its goals
LEAST_CHUNK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Part:
    """The next `count` uncomputed tokens of a sequence."""

    sequence: Sequence
    count: int

    @property
    def draws(self) -> bool:
        """The step brings a new token for it."""
        return self.count == self.sequence.uncomputed


@dataclass(frozen=True, slots=True)
class TextBatch(Batch[Sequence]):
    """One step: prefill chunks and decode steps in any mix."""

    parts: tuple[Part, ...]
    ending: tuple[Sequence, ...]
    """Sequences past their floor that this step would make late: they end as they are."""
    evicted: tuple[Sequence, ...]
    """Sequences that give their slots to more urgent ones; they are computed anew when their turn comes."""
    bound_ms: float
    """What the step takes at most, at the admission quantile, with the time to answer."""


class TextScheduler:
    """Every step takes the most urgent sequences, whatever their lengths and plans; new ones join at the next step."""

    def __init__(self, costs: TextCosts, *, slots: int, planning: Setting, lengths: LengthModel | None = None) -> None:
        """`planning` holds what does not change: batch limit, quantiles, overhead. `slots` is at least its batch.

        `lengths` says how long texts will be; None: as long as was asked.
        """
        if slots < planning.max_batch:
            raise ValueError(f"slots: {slots} are fewer than the {planning.max_batch} sequences of a step")
        self.costs, self._slots, self._planning = costs, slots, planning
        self._lengths = lengths or LengthModel()

    def setting(self, now_s: float, foreign: Foreign, scale: Cost) -> Setting:
        """See `headway.engine.Scheduler`."""
        return replace(self._planning, now_s=now_s, foreign=foreign, scale=scale)

    def job(self, work: Sequence, now_s: float) -> Job:
        """See `headway.engine.Scheduler`."""
        ticket = work.ticket
        prefill = self.costs.prefill_cost(work.uncomputed) if work.uncomputed > 1 else ZERO
        full_ms = self.costs.decode.at(self._planning.max_batch).mean_ms
        options = as_expected(options_of(work, prefill), work, self._lengths, full_ms)
        return Job(ticket.key, ticket.wish.priority, ticket.budget.due_s, ticket.target_s, options)

    def next_batch(self, works: Several[Sequence], now_s: float, scale: Cost) -> TextBatch | None:
        """See `headway.engine.Scheduler`; `works` come most urgent first."""
        ending = self._ending(works[: self._planning.max_batch], now_s, scale)
        going = [work for work in works if work not in ending]
        lanes = going[: self._planning.max_batch]
        decodes = [Part(work, 1) for work in lanes if work.uncomputed == 1]
        prefills = self._prefills(lanes, decodes, now_s, scale)
        parts = (*decodes, *prefills)
        predicted = self.costs.step_cost(len(decodes), sum(part.count for part in prefills))
        return TextBatch(
            stage="prefill" if prefills else "decode",
            works=(*(part.sequence for part in parts), *ending),
            items=len(parts),
            predicted=predicted,
            parts=parts,
            ending=ending,
            evicted=self._evicted(going, len(lanes), parts, len(ending)),
            bound_ms=self._bound_ms(predicted, scale),
        )

    def _ending(self, lanes: Several[Sequence], now_s: float, scale: Cost) -> tuple[Sequence, ...]:
        decodes = sum(work.uncomputed == 1 for work in lanes)
        end_s = now_s + self._bound_ms(self.costs.step_cost(max(1, decodes), 0), scale) / 1000
        return tuple(work for work in lanes if work.over_floor and end_s > work.ticket.budget.due_s)

    def _bound_ms(self, predicted: Cost, scale: Cost) -> float:
        step_ms = predicted.scaled(scale).quantile_ms(self._planning.admission_quantile)
        return step_ms + self._planning.overhead_ms

    def _prefills(
        self, lanes: Several[Sequence], decodes: Several[Part], now_s: float, scale: Cost
    ) -> tuple[Part, ...]:
        """Prefill chunks in order of urgency, together no larger than the tightest decoding sequence bears."""
        left = self.costs.chunk_tokens
        if decodes:
            tightest_ms = min(part.sequence.ticket.budget.remaining_s(now_s) for part in decodes) * 1000
            while left > LEAST_CHUNK_TOKENS:
                if self._bound_ms(self.costs.step_cost(len(decodes), left), scale) <= tightest_ms:
                    break
                left = max(LEAST_CHUNK_TOKENS, left // 2)
        parts = []
        for work in lanes:
            if work.uncomputed > 1 and left > 0:
                parts.append(Part(work, min(left, work.uncomputed)))
                left -= parts[-1].count
        return tuple(parts)

    def _evicted(self, works: Several[Sequence], lanes: int, parts: Several[Part], ending: int) -> tuple[Sequence, ...]:
        """The least urgent holders of slots outside the lanes, as many as the step lacks."""
        free = self._slots - sum(work.slot is not None for work in works) - ending
        lacking = sum(part.sequence.slot is None for part in parts) - free
        holders = [work for work in reversed(works[lanes:]) if work.slot is not None]
        return tuple(holders[: max(0, lacking)])


def options_of(work: Sequence, prefill: Cost) -> tuple[Option, ...]:
    """How far `work` may still go, farthest first: its goals ahead, and once past its floor a few tokens, or only one.

    After one planned token the sequence ends. So it goes on past its last affordable goal, token by token, as long as
    the planner finds that a few more harm nobody.
    """
    done, most = work.new_tokens, work.goals[0].tokens
    totals = {goal.tokens for goal in work.goals if goal.tokens > done}
    if work.over_floor:
        totals |= {min(done + steps, most) for steps in (STRETCH_TOKENS, 1)}
    due_s = work.ticket.budget.due_s
    return tuple(
        Option(work.rung_at(total), Load(due_s, 1, total - done, prefill)) for total in sorted(totals, reverse=True)
    )


def as_expected(
    options: tuple[Option, ...], work: Sequence, lengths: LengthModel, step_ms: float
) -> tuple[Option, ...]:
    """The options with the steps that the text is expected to take, which may end before the rung does.

    The last one stays whole, because it is the promise. Only a plan of one more token has one step: it ends the text.
    What the length varies by stands in the setup's variance; `step_ms` is what a step takes at most.
    """
    wholes = [option.load.steps_left for option in reversed(options)]
    expected = reversed(lengths.left(work.prompt_tokens, work.new_tokens, wholes))
    least = wholes[0]
    found = [
        replace(option, load=_shortened(option.load, steps, var_steps2 * step_ms**2, least))
        for option, (steps, var_steps2) in zip(options[:-1], expected, strict=False)
    ]
    return (*found, options[-1])


def _shortened(load: Load, steps: float, var_ms2: float, least: int) -> Load:
    steps_left = min(load.steps_left, max(least, 2, math.ceil(steps - 1e-6)))
    return replace(load, steps_left=steps_left, setup=load.setup + Cost(0.0, var_ms2))
