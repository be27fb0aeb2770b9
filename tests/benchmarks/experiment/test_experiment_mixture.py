import random

import pytest

from benchmarks.experiment.arrivals import Mix, arrivals
from benchmarks.experiment.capacity import Capacity
from benchmarks.experiment.generator import unhurried
from benchmarks.experiment.mixture import MixedCell, Mixture, first_part, shared_bound
from benchmarks.experiment.records import Record
from benchmarks.experiment.summary import summarise
from benchmarks.experiment.worker import Cores
from benchmarks.mixed import verdict

ONE = Capacity(
    ((1, 100.0),), (("top", 10.0), ("low", 20.0)), (("top", 10.0), ("low", 20.0)), (("top", 1.0), ("low", 0.5))
)


def test_a_contender_with_a_share_is_sent_the_first_of_the_same_arrivals() -> None:
    sent = arrivals([0.5, 1.0, 2.0, 4.0], Mix((1,)), ONE.solo_ms, random.Random(1))
    assert first_part(sent, 1.0) == sent
    assert first_part(sent, 0.5) == sent[:3]
    assert first_part([], 0.5) == []


def test_kinds_on_one_device_share_the_bound() -> None:
    sent = arrivals([0.0] * 10, Mix((1,)), ONE.solo_ms, random.Random(1))
    alone = shared_bound({"image": ONE}, {"image": sent})
    both = shared_bound({"image": ONE, "text": ONE}, {"image": sent, "text": sent})
    assert alone <= both < 2 * alone


def cell(rival: str, load: float, qualities: list[float], late: int) -> MixedCell:
    """Answers of these qualities, `late` more that were admitted and came too late."""
    arrival = unhurried(1, 1)
    records = [Record(arrival, 0.0, 10.0, admitted=True, rung="top", quality=quality) for quality in qualities]
    records += [Record(arrival, 0.0, 99_000.0, admitted=True, rung="top", quality=1.0) for _ in range(late)]
    figures = summarise(records)
    return MixedCell(rival, load, {**figures, "goodput_over_bound": 0.5}, {"text": figures})


def test_the_verdict_is_against_the_best_baseline_and_not_against_no_arbiter() -> None:
    cells = (
        cell("headway", 1.2, [0.9] * 10, late=0),
        cell("no arbiter", 1.2, [1.0] * 10, late=5),
        cell("top", 1.2, [1.0] * 3, late=7),
        cell("lowest", 1.2, [0.6] * 10, late=0),
    )
    found = verdict(Mixture({}, cells, Cores(None, None)))
    assert found["over_best_baseline"] == {"baseline": "lowest", "ratio": pytest.approx(1.5)}
    assert found["missed"] == {1.2: 0}
    assert found["arbiter"][1.2]["no arbiter"]["late"] == 5
