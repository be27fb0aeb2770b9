"""How far a sequence may still go, as the planner sees it: its goals ahead, each with what is left to do. Pure."""

import math
from collections.abc import Sequence as Several

from headway.cost import Cost, Load
from headway.planning import Option
from services.text_worker.kv.store import blocks_of
from services.text_worker.lengths import LengthModel
from services.text_worker.sequence import Sequence

STRETCH_TOKENS = 4
"""How far a sequence past its floor is planned on, beside its goals."""


def options_of(work: Sequence, prefill: Cost, share: float, lengths: LengthModel, step_ms: float) -> tuple[Option, ...]:
    """How far `work` may still go, farthest first: its goals ahead, and once past its floor a few tokens, or only one.

    After one planned token the sequence ends. So it goes on past its last affordable goal, token by token, as long as
    the planner finds that a few more harm nobody. `share`: blocks of the KV cache for each lane; a sequence that will
    need more takes the place of several, so that no more is admitted than the cache can hold. `step_ms`: what a step
    takes at most. What the text's length varies by stands in the setup's variance.
    """
    done, due_s = work.new_tokens, work.ticket.budget.due_s
    wholes = [total - done for total in _totals(work)]
    found = []
    for whole, (steps, var_steps2) in zip(wholes, _expected(work, lengths, wholes), strict=True):
        lanes = max(1, math.ceil(blocks_of(work.prompt_tokens + done + whole) / share))
        setup = Cost(prefill.mean_ms, prefill.var_ms2 + var_steps2 * step_ms**2) if var_steps2 else prefill
        found.append(Option(work.rung_at(done + whole), Load(due_s, lanes, steps, setup)))
    return tuple(found)


def _totals(work: Sequence) -> list[int]:
    """New tokens in all at which it may end, most first."""
    done, most = work.new_tokens, work.goals[0].tokens
    ahead = [goal.tokens for goal in work.goals if goal.tokens > done]
    if not work.over_floor:
        return ahead
    return sorted({*ahead, min(done + STRETCH_TOKENS, most), min(done + 1, most)}, reverse=True)


def _expected(work: Sequence, lengths: LengthModel, wholes: Several[int]) -> list[tuple[int, float]]:
    """The steps that the text is expected to take, if cut after each of `wholes`, which fall; and their variance.

    It may end before. The last stays whole, because it is the promise. Only a plan of one more token has one step: it
    ends the text.
    """
    promise = (wholes[-1], 0.0)
    if len(wholes) == 1:
        return [promise]
    least, left = max(2, wholes[-1]), lengths.left(work.prompt_tokens, work.new_tokens, wholes[::-1])
    steps = [
        (min(whole, max(least, math.ceil(mean - 1e-6))), var)
        for whole, (mean, var) in zip(wholes[:-1], reversed(left[1:]), strict=True)
    ]
    return [*steps, promise]
