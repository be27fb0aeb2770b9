"""Workers that come and go: how many, how fast, and as real processes."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.cli.autoscale import REST_S, Autoscaler, Pace, read_bounds, runner
from headway.cli.topology import MeshSettings, Part, parts_of


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(0, 6), st.lists(st.tuples(st.integers(0, 20), st.floats(0, 40)), max_size=30))
def test_it_follows_up_at_once_and_down_slowly_within_the_bounds(
    least: int, more: int, signal: list[tuple[int, float]]
) -> None:
    pace, running, now_s, went_s = Pace(least, least + more), least, 0.0, 0.0
    for desired, wait_s in signal:
        now_s += wait_s
        target = pace.target(running, desired, now_s)
        assert least <= target <= least + more
        assert target >= min(desired, least + more)
        assert target >= running - 1
        if target < running:
            assert now_s - went_s >= REST_S
            went_s = now_s
        elif desired >= running:
            went_s = now_s
        running = target
    for step in range(more + 2):
        running = pace.target(running, 0, now_s + (step + 1) * REST_S)
    assert running == least


@pytest.mark.parametrize("text", ["", "1", "0:2", "3:2", "1:99", "a:b", "1:2:3", "-1:2", "1 : 2"])
def test_bounds_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="MIN"):
        read_bounds(text)


def test_bounds() -> None:
    assert (read_bounds("1:3"), read_bounds("2:2")) == ((1, 3), (2, 2))


def spare_parts(folder: Path) -> tuple[Part, ...]:
    """Device arbiters, because they start at once."""
    found = []
    for number in (2, 3):
        sockets = folder / str(number)
        sockets.mkdir()
        parts = parts_of(MeshSettings("127.0.0.1:1", folder, sockets, "redis://h"))
        (arbiter,) = (part for part in parts if part.name == "device-arbiter")
        found.append(Part(f"text-{number}-worker", arbiter.command, arbiter.ready, arbiter.env))
    return tuple(found)


class Now:
    s = 0.0

    def __call__(self) -> float:
        return self.s


async def test_processes_come_and_go(tmp_path_factory: pytest.TempPathFactory) -> None:
    said: list[tuple[str, str]] = []
    turned, now = asyncio.Event(), Now()

    def say(name: str, line: str) -> None:
        said.append((name, line))
        turned.set()

    async def heard(name: str, words: str) -> None:
        async with asyncio.timeout(30):
            while not any(who == name and words in line for who, line in said):
                turned.clear()
                await turned.wait()

    run = runner(say, start_s=30, drain_s=5)
    spare = {"text": spare_parts(tmp_path_factory.mktemp("m"))}
    scaler = Autoscaler("127.0.0.1:1", spare, (1, 3), run, say, clock=now)
    await scaler.scale("text", 9)
    await heard("text-2-worker", "ready after")
    await heard("text-3-worker", "ready after")
    await scaler.scale("text", 1)
    now.s = REST_S
    await scaler.scale("text", 1)
    await heard("text-3-worker", "fewer workers are wanted")
    await scaler._kinds["text"].extras[1].task
    assert ("text-2-worker", "ended") not in said
    await scaler.scale("text", 3)
    await scaler._end()
    assert [name for name, line in said if line.startswith("starts,")] == [
        "text-2-worker", "text-3-worker", "text-3-worker"
    ]  # fmt: skip
