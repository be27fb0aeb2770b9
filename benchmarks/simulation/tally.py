"""What came of the requests, counted as they end."""

from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.experiment.intervals import clopper_pearson, wilson
from benchmarks.figures import quantile
from benchmarks.simulation.router import Request
from headway.errors import HeadwayError
from headway.quality import Rung


@dataclass(slots=True)
class Counts:
    """Some of the requests."""

    asked: int = 0
    admitted: int = 0
    answered: int = 0
    in_time: int = 0
    goodput: float = 0.0
    """Quality of those answered in time, summed."""
    refused: Counter[str] = field(default_factory=Counter)
    """By reason."""
    rungs: Counter[str] = field(default_factory=Counter)
    """Of those answered."""

    def take(self, request: Request, what: Rung | HeadwayError, admitted: bool, now_s: float) -> None:
        """Counts a request that is over. Mutates."""
        self.asked += 1
        self.admitted += admitted
        if isinstance(what, HeadwayError):
            if not admitted:
                self.refused[what.reason_name] += 1
            return
        self.answered += 1
        self.rungs[what.label] += 1
        if now_s <= request.deadline_s:
            self.in_time += 1
            self.goodput += what.quality

    def as_dict(self) -> dict[str, Any]:
        """As the results file has it; shares with 95 % intervals."""
        missed = self.admitted - self.in_time
        return {
            "n": self.asked,
            "admitted": self.admitted,
            "refused": dict(self.refused),
            "answered": self.answered,
            "missed": missed,
            "missed_share_95": clopper_pearson(missed, self.admitted),
            "attainment": self.in_time / self.admitted if self.admitted else None,
            "in_time_of_all": self.in_time / self.asked if self.asked else None,
            "in_time_of_all_95": wilson(self.in_time, self.asked),
            "goodput": self.goodput,
            "goodput_per_request": self.goodput / self.asked if self.asked else None,
            "quality": self.goodput / self.in_time if self.in_time else None,
            "rungs": dict(self.rungs),
        }


class Tally:
    """All requests of one run: together, by kind, by priority and by tenant."""

    def __init__(self) -> None:
        self.all = Counts()
        self.by: dict[str, dict[str, Counts]] = {
            "kind": defaultdict(Counts), "priority": defaultdict(Counts), "tenant": defaultdict(Counts)
        }  # fmt: skip
        self._shares = array("f")
        """Time taken over the deadline, of those answered."""

    def take(self, request: Request, what: Rung | HeadwayError, admitted: bool, now_s: float) -> None:
        """Counts a request that is over. Mutates."""
        self.all.take(request, what, admitted, now_s)
        names = {"kind": request.model.name, "priority": request.priority, "tenant": request.tenant}
        for group, name in names.items():
            self.by[group][name].take(request, what, admitted, now_s)
        if not isinstance(what, HeadwayError):
            self._shares.append((now_s - request.at_s) / (request.deadline_s - request.at_s))

    def as_dict(self) -> dict[str, Any]:
        """As the results file has it."""
        groups = {
            f"by_{group}": {name: counts.as_dict() for name, counts in sorted(each.items())}
            for group, each in self.by.items()
        }
        shares = {f"p{share * 100:g}": quantile(self._shares, share) for share in (0.5, 0.99)}
        return {**self.all.as_dict(), **groups, "latency_over_deadline": shares}


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all are equal, 1/n when one has everything.

    Jain, Chiu and Hawe, A quantitative measure of fairness and discrimination, DEC-TR-301, 1984.
    """
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0
