"""Which of the workers that could be asked would answer in time, and the refusal where none would. Pure."""

from collections.abc import Sequence

from headway.cost import predict_finish
from headway.deadline import Budget
from headway.errors import BudgetTooSmall, HeadwayError, Shed
from services.router.placement import InTime, Placement

_SURE = 0.999
"""Workers admit what comes in time in this share of cases, unless they are told otherwise."""
_SOONEST_S = 0.05


def feasible(placements: Sequence[Placement], budget: Budget, now_s: float, quantile: float) -> list[Placement]:
    """Those expected in time, in their order; at least one. `placements` has at least one.

    Raises `BudgetTooSmall` where even an idle worker would be late, else `Shed` with the time after which one would
    not. `quantile`: with which the placements were expected.
    """
    in_time = [placement for placement in placements if placement.in_time is not InTime.LATE]
    if not in_time:
        raise _refusal(placements, budget, now_s, quantile)
    return in_time


def _refusal(placements: Sequence[Placement], budget: Budget, now_s: float, quantile: float) -> HeadwayError:
    left_ms = budget.remaining_s(now_s) * 1000
    least_ms = min(map(_idle_ms, placements))
    if least_ms > left_ms:
        kept_ms = (now_s - budget.arrival_s + budget.reserve_s) * 1000
        given_ms = (budget.deadline_s - budget.arrival_s) * 1000
        return BudgetTooSmall(budget_ms=given_ms, least_budget_ms=least_ms + kept_ms)
    over_ms = min(placement.finish.quantile_ms(quantile) for placement in placements) - left_ms
    return Shed(
        "no worker would be done in time behind what is admitted already",
        retry_after_s=max(_SOONEST_S, over_ms / 1000),
    )


def _idle_ms(placement: Placement) -> float:
    """When a worker with nothing else to do would be done, from now."""
    report = placement.view.report
    curve = report.curve(placement.asset.hash, placement.rung.label)
    return predict_finish([placement.load], curve, report.max_batch)[0].quantile_ms(_SURE)
