"""What callers are told when their work is admitted, and what is learned from how it came out."""

from headway.cost import Cost, LearnedScale
from headway.planning import Choice, Setting
from headway.ticket import Ticket
from headway.v1 import common_pb2


class Promises:
    """Used under the engine loop's lock."""

    def __init__(self) -> None:
        self._stretch = LearnedScale()
        """How much longer answers take than was predicted from what was admitted: for work that comes later and is more
        urgent. Part of what callers are told, and not of admission, because urgency protects their deadlines."""

    def make(self, ticket: Ticket, choice: Choice, setting: Setting, reason: common_pb2.RungReason) -> None:
        """Gives a ticket that was just admitted its plan. Mutates the ticket."""
        ticket.admitted_s, ticket.predicted = setting.now_s, choice.finish + Cost(setting.overhead_ms)
        told, most_ms = ticket.predicted.scaled(self._stretch.value), ticket.budget.total_s * 1000
        ticket.plan = common_pb2.Plan(
            rung=choice.option.rung.to_proto(),
            reason=reason,
            steps=max(1, choice.option.load.steps_left),
            budget_ms=most_ms,
            predicted_p50_ms=min(told.quantile_ms(0.5), most_ms),
            predicted_p99_ms=min(told.quantile_ms(0.99), most_ms),
        )

    def kept(self, ticket: Ticket, now_s: float) -> None:
        """Learns from an answer. A text that ended by itself, or an image at fewer steps, is held to its share."""
        assert ticket.plan is not None
        share = min(1.0, ticket.steps_executed / ticket.plan.steps)
        actual_ms = (now_s - ticket.admitted_s) * 1000
        self._stretch.observe(predicted_ms=ticket.predicted.mean_ms * share, actual_ms=actual_ms)


def share_of_target(ticket: Ticket, now_s: float) -> float:
    """The time since the call came over the time that its answer was wanted in."""
    arrival_s = ticket.budget.arrival_s
    return (now_s - arrival_s) / max(ticket.target_s - arrival_s, 1e-6)
