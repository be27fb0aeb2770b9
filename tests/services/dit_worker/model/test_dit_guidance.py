from itertools import pairwise

import pytest

from services.dit_worker.model.guidance import UNGUIDED, Guidance
from services.dit_worker.sampler import next_time

LADDER = {4: 1.5, 2: 1.75, 1: 2.0}


@pytest.mark.parametrize("steps", LADDER)
def test_each_rung_has_its_weight_in_every_step(steps: int) -> None:
    guidance, times = Guidance.by_steps(LADDER), [1.0]
    for left in range(steps, 0, -1):
        times.append(next_time(times[-1], left))
    assert [guidance.at(t, s) for t, s in pairwise(times)] == pytest.approx([LADDER[steps]] * steps)


def test_between_rungs_and_beyond_them() -> None:
    guidance = Guidance.by_steps(LADDER)
    assert guidance.at(1.0, 0.25) == pytest.approx(1.875)
    assert guidance.at(0.1, 0.0) == 1.5
    assert [UNGUIDED.at(1.0, 0.0), Guidance.fixed(1.3).at(0.5, 0.2)] == [1.0, 1.3]


def test_it_is_written_as_it_was_given() -> None:
    assert Guidance.by_steps(LADDER).as_steps() == {"4": 1.5, "2": 1.75, "1": 2.0}
