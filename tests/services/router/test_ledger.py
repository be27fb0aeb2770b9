"""A router's books of one worker, without a connection."""

import pytest

from headway.cost import Cost, Load, StepCurve
from headway.quality import Ladder, Rung
from headway.v1 import common_pb2
from services.router.ledger import Ledger
from services.router.view import Asset, Description, Report

CURVE = StepCurve(((1, Cost(10.0)),))


class Now:
    s = 100.0

    def __call__(self) -> float:
        return self.s


def report(now: Now, *loads: Load) -> Report:
    return Report(now.s, loads, {("", ""): CURVE}, 1, 0.0, len(loads), 0.0, False)


def known(now: Now, interval_s: float) -> Ledger:
    ledger = Ledger("w", now, changed=lambda: None, may_leave=lambda: False, interval_s=interval_s)
    assets = (Asset("sums", "h", Ladder((Rung("1", 1.0, nfe=1),))),)
    ledger.described(Description("w", common_pb2.KIND_IMAGE, "", "", assets))
    assert ledger.view() is None
    ledger.reported(report(now))
    return ledger


def in_flight(ledger: Ledger) -> int:
    view = ledger.view()
    assert view is not None
    return view.in_flight


@pytest.mark.parametrize("interval_s", [0.05, 0.5])
def test_what_was_sent_counts_for_two_intervals_of_reports_unless_one_knows_better(interval_s: float) -> None:
    now = Now()
    ledger = known(now, interval_s)
    sent = ledger.opened(Load(now.s + 1, 1, 1))
    now.s += interval_s
    ledger.reported(report(now))
    assert (in_flight(ledger), ledger.open_calls) == (1, 1)
    now.s += interval_s * 1.01
    ledger.reported(report(now))
    assert (in_flight(ledger), ledger.open_calls) == (0, 1)
    ledger.answered(sent)
    ledger.closed(sent)
    assert ledger.open_calls == 0
    assert ledger.latency_ms == pytest.approx(2010 * interval_s)


def test_what_is_to_do_by_when_counts_reported_and_sent_work_alike() -> None:
    now = Now()
    ledger = known(now, 0.05)
    ledger.reported(report(now, Load(now.s + 1, 1, 2)))
    ledger.opened(Load(now.s + 2, 1, 3))
    view = ledger.view()
    assert view is not None
    assert view.demand == ((now.s + 1, 20.0), (now.s + 2, 30.0))


def test_only_reports_that_are_asked_for_are_read() -> None:
    now, read = Now(), list[float]()
    ledger = known(now, 0.05)
    for _ in range(5):
        now.s += 0.05

        def reading(at_s: float = now.s) -> Report:
            read.append(at_s)
            return report(now, Load(at_s + 1, 1, 1))

        ledger.heard(now.s, reading)
    assert read == []
    assert in_flight(ledger) == 1
    assert ledger.queue_depth == 1
    assert read == [now.s]
