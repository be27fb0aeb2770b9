"""The host's speed around a measurement, over that around the first."""

from benchmarks.experiment.host import HostSpeed, rounds_now
from benchmarks.experiment.worker import Cores


async def test_speed_is_that_around_each_measurement_over_that_around_the_first() -> None:
    rounds = iter([90.0, 110.0, 150.0, 50.0])

    async def look() -> float:
        return next(rounds)

    host = HostSpeed(look)
    assert [await host.since_last() for _ in range(4)] == [1.0, 1.0, 1.3, 1.0]


async def test_this_machine_does_some_rounds() -> None:
    assert await rounds_now(Cores(None, None)) > 1
