import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headway.calibration import MEASURED_WITHIN_S, Curves, Probe, Soon, cache_folder, calibrated, cost_of, quiet_cost
from headway.cost import Cost, StepCurve
from headway.device import Lease

CURVES = {"decode": StepCurve(((1, Cost(2.0, 0.1)), (8, Cost(5.0, 0.2))))}


def as_kept() -> Probe:
    return "decode", 1, Cost(2.0)


class Measure:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Curves:
        self.calls += 1
        return CURVES


def test_a_host_is_measured_once(tmp_path: Path) -> None:
    measure = Measure()
    for _ in range(3):
        assert calibrated(tmp_path, key=("engine", "hash"), measure=measure, probe=as_kept) == CURVES
    assert measure.calls == 1
    calibrated(tmp_path, key=("engine", "other"), measure=measure, probe=as_kept)
    assert measure.calls == 2


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        '{"format": 1}',
        '{"format": 9, "curves": {}}',
        '{"format": 1, "curves": {"decode": []}}',
        '{"format": 1, "curves": {"decode": [{"batch": 1, "mean_ms": -1, "var_ms2": 0}]}}',
    ],
)
def test_nonsense_costs_a_measurement_and_nothing_else(tmp_path: Path, content: str) -> None:
    measure = Measure()
    calibrated(tmp_path, key=("k",), measure=measure, probe=as_kept)
    (kept,) = tmp_path.iterdir()
    kept.write_text(content)
    assert calibrated(tmp_path, key=("k",), measure=measure, probe=as_kept) == CURVES
    assert measure.calls == 2


@pytest.mark.parametrize(("now", "calls"), [(("decode", 8, Cost(4.0)), 1), (("decode", 8, Cost(3.0)), 2)])
def test_what_was_measured_on_a_busy_machine_is_measured_again(tmp_path: Path, now: Probe, calls: int) -> None:
    measure = Measure()
    calibrated(tmp_path, key=("k",), measure=measure, probe=as_kept)
    calibrated(tmp_path, key=("k",), measure=measure, probe=lambda: now)
    assert measure.calls == calls


class Recording:
    """A device that is free, and keeps when each lease was due, in s from now."""

    def __init__(self) -> None:
        self.leases: list[float] = []

    @contextmanager
    def lease(self, *, due_s: float, label: str, keep: bool = False) -> Iterator[Lease]:
        self.leases.append(due_s - time.monotonic())
        yield Lease(0.0, True)

    def rest(self) -> None: ...

    def hurry(self, due_s: float) -> None: ...

    def declare(self, demand: object, *, step_end_s: float | None = None) -> None: ...

    def others(self) -> tuple[tuple[float, float], ...]:
        return ()

    @property
    def busy_until_s(self) -> None: ...


def test_every_timed_run_holds_the_device_behind_all_real_work() -> None:
    device = Recording()
    cost = quiet_cost(lambda: sum(range(1000)), device, repeats=6)
    assert cost.mean_ms > 0
    assert len(device.leases) == 7
    assert min(device.leases) > 30


def test_a_probe_is_not_held_up_by_work_that_is_due_later() -> None:
    device = Recording()
    assert quiet_cost(lambda: sum(range(1000)), Soon(device), repeats=6).mean_ms > 0
    assert len(device.leases) == 7
    assert max(device.leases) <= 1.0
    assert quiet_cost(lambda: sum(range(1000)), Soon(device, MEASURED_WITHIN_S), repeats=6).mean_ms > 0
    assert 1.0 < max(device.leases) <= MEASURED_WITHIN_S, "and a measurement gives way for a while alone"


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert calibrated(blocked / "below", key=("k",), measure=Measure(), probe=as_kept) == CURVES


def test_the_folder_is_the_configured_one_else_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder(tmp_path) == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "headway"


def test_a_stall_does_not_become_the_rule() -> None:
    cost = cost_of([10.0, 10.2, 9.9, 10.1, 10.0, 250.0])
    assert cost.mean_ms == pytest.approx(10.05, abs=0.2)
    assert 0 < cost.var_ms2 < 10_000
