import pytest
from scipy.stats import binom

from benchmarks.experiment.arrivals import Arrival, Mix
from benchmarks.experiment.capacity import Capacity, TooFewAnswers, rate_between
from benchmarks.experiment.intervals import clopper_pearson, wilson
from benchmarks.experiment.plots import draw
from benchmarks.experiment.records import Record
from benchmarks.experiment.runner import Cell, Results, at_entry, late_cells
from benchmarks.experiment.summary import summarise

CAPACITY = Capacity(
    ((16, 100.0), (64, 400.0)),
    (("4", 80.0), ("1", 320.0)),
    (("4", 100.0), ("1", 400.0)),
    (("4", 1.0), ("1", 0.5)),
)


def record(index: int, elapsed_ms: float, *, error=None, admitted=True, rung="4", quality=1.0, priority="normal"):
    arrival = Arrival(index, 0.0, 16, 100.0, 50.0, priority, index)
    return Record(arrival, 0.1, elapsed_ms, error, admitted, rung, quality, predicted_p50_ms=30.0)


RECORDS = [
    record(0, 40.0),
    record(1, 80.0, rung="1", quality=0.5, priority="high"),
    record(2, 120.0),
    record(3, 99.0, error="EXPIRED", quality=0.0),
    record(4, 2.0, error="SHED", admitted=False, quality=0.0),
]


def test_a_cell_counts_what_was_promised_apart_from_what_was_refused():
    figures = summarise(RECORDS)
    assert (figures["n"], figures["admitted"], figures["answered"]) == (5, 4, 3)
    assert figures["refused"] == {"SHED": 1} and figures["failed"] == {"EXPIRED": 1}
    assert figures["attainment_deadline"]["share"] == 0.5  # the late answer and the expired one missed
    assert figures["attainment_target"]["share"] == 0.25
    assert figures["in_time_of_all"]["share"] == 0.4
    assert figures["goodput"] == 1.5
    assert figures["served_quality"] == pytest.approx(2.5 / 3)
    assert figures["items_by_rung"] == {"4": 32, "1": 16}
    assert figures["latency_ms"] == {"p50": 80.0, "p95": 120.0, "p99": 120.0}
    assert figures["refusal_ms"]["p95"] == 2.0
    assert figures["by_priority"]["high"]["attainment_deadline"]["share"] == 1.0


def test_a_cell_without_requests_has_no_shares():
    figures = summarise([])
    assert figures["attainment_deadline"]["share"] is None and figures["latency_ms"]["p95"] is None


@pytest.mark.parametrize(("hits", "total"), [(0, 3000), (3, 3000), (7, 20), (20, 20)])
def test_the_exact_interval_is_the_one_the_binomial_distribution_says(hits, total):
    low, high = clopper_pearson(hits, total)
    assert low == 0.0 if hits == 0 else binom.sf(hits - 1, total, low) == pytest.approx(0.025)
    assert high == 1.0 if hits == total else binom.cdf(hits, total, high) == pytest.approx(0.025)
    assert wilson(hits, total)[0] <= hits / total <= wilson(hits, total)[1]


def test_three_thousand_kept_promises_are_what_one_in_a_thousand_takes():
    assert clopper_pearson(0, 3000)[1] < 0.00125
    assert clopper_pearson(0, 0) == (0.0, 1.0) == wilson(0, 0)


def test_a_rate_is_taken_between_answers_that_come_in_batches():
    ended = [(0.5 * batch, 16) for batch in range(1, 13) for _ in range(4)]  # 64 items every half second
    assert rate_between(ended, 1.2, 4.3) == pytest.approx(128.0)
    with pytest.raises(TooFewAnswers, match="measure longer"):
        rate_between(ended, 1.1, 1.3)


def test_capacity_says_load_deadlines_and_windows():
    assert CAPACITY.requests_per_s(Mix((16, 48))) == 10.0
    assert CAPACITY.solo_ms(40) == 250.0
    window = CAPACITY.window(Arrival(0, 2.0, 20, 500.0, 500.0, "normal", 0))
    assert (window.release_s, window.due_s, window.options) == (2.0, 2.5, ((1.0, 0.2), (0.5, 0.05)))
    assert CAPACITY.window(Arrival(0, 2.0, 20, 500.0, 500.0, "normal", 0), 2.0).options == ((1.0, 0.1), (0.5, 0.025))


def test_refusals_at_the_entry_are_read_from_a_histogram():
    found = at_entry({0.003: 94.0, 0.005: 97.0, float("inf"): 100.0})
    assert found == {"n": 100.0, "p95_at_most_ms": 5.0, "share_under_5_ms": 0.97}
    assert at_entry({0.005: 0.0, float("inf"): 0.0})["p95_at_most_ms"] is None


def test_a_generator_that_was_late_is_told():
    late = [Record(record(0, 40.0).arrival, 50.0, 40.0, admitted=True, rung="4")]
    cells = tuple(Cell("headway", "steady", 0.3, summarise(records), ()) for records in (RECORDS, late, []))
    assert late_cells(Results(CAPACITY, cells, {})) == ["headway steady 0.3: p99 50 ms"]


def test_a_run_is_drawn(tmp_path):
    figures = summarise(RECORDS) | {"goodput_over_bound": 0.9}
    cells = tuple(Cell(name, "steady", load, figures, ()) for name in ("headway", "fixed") for load in (0.3, 1.5))
    results = Results(CAPACITY, cells, {})
    draw(results, tmp_path / "run.svg", "a run")
    assert b"<svg" in (tmp_path / "run.svg").read_bytes()
    assert results.contenders() == ["headway", "fixed"] and results.loads() == [0.3, 1.5]
    assert results.as_dict()["cells"][0]["contender"] == "headway"
