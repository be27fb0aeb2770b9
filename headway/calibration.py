"""What steps cost on this host, measured once and kept: a JSON file for each host, engine and asset."""

import hashlib
import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from headway.cost import Cost, StepCurve
from headway.engine import Device, Lease

log = logging.getLogger(__name__)

_FORMAT = 1
_PATIENCE_S = 60.0
_PROBED_WITHIN_S = 1.0
"""A worker that starts again on a busy device is wanted back: its probe is a few short steps."""
MEASURED_WITHIN_S = 20.0
"""How long a first measurement gives way to real work; on a device that is never at rest it would never end."""
_TOO_SLOW = 0.67
"""A probe below this share of what was kept says that it was measured on a busy machine."""


class _Point(BaseModel):
    batch: int = Field(ge=1)
    mean_ms: float = Field(gt=0, allow_inf_nan=False)
    var_ms2: float = Field(ge=0, allow_inf_nan=False)


class _File(BaseModel):
    format: int
    curves: dict[str, list[_Point]]


Curves = Mapping[str, StepCurve]
"""By the stage's name, e.g. "decode"."""


def cache_folder(configured: Path | None) -> Path:
    """Where calibrations are kept: as configured, else the user's cache folder (XDG)."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return configured if configured is not None else Path(base) / "headway"


Probe = tuple[str, int, Cost]
"""A curve's name, a size, and what a step of that size costs now."""


def calibrated(
    folder: Path, *, key: Sequence[str], measure: Callable[[], Curves], probe: Callable[[], Probe]
) -> Curves:
    """The curves kept for `key` on this host, else what `measure` finds, which is then kept.

    Kept curves are held against one `probe`: where a step is much quicker now, they were measured on a busy machine,
    and would refuse work that could be done. A file that cannot be read or written, or that holds nonsense, costs a
    measurement and is logged; it is never an error. Blocks for as long as `measure` and `probe` take.
    """
    path = folder / f"calibration-{_name(key)}.json"
    kept = _read(path)
    if kept is not None and not _far_too_slow(kept, probe()):
        return kept
    log.info("measuring what steps cost on this host: %s", " ".join(key))
    curves = measure()
    _write(path, curves)
    return curves


class Soon:
    """A device for a probe or a measurement: all that it leases is due so long from now, and a busy device gets to it.

    Behind all real work, each of its steps could wait for as long as others have any.
    """

    def __init__(self, device: Device, within_s: float = _PROBED_WITHIN_S) -> None:
        self._device, self._due_s = device, time.monotonic() + within_s

    def lease(self, *, due_s: float, label: str, keep: bool = False) -> AbstractContextManager[Lease]:
        return self._device.lease(due_s=min(due_s, self._due_s), label=label, keep=keep)

    def rest(self) -> None:
        self._device.rest()

    def hurry(self, due_s: float) -> None:
        self._device.hurry(due_s)

    def declare(self, demand: Sequence[tuple[float, float]], *, step_end_s: float | None = None) -> None:
        self._device.declare(demand, step_end_s=step_end_s)

    def others(self) -> tuple[tuple[float, float], ...]:
        return self._device.others()

    @property
    def busy_until_s(self) -> float | None:
        return self._device.busy_until_s


def timed_ms(action: Callable[[], object], device: Device) -> float:
    """Runs `action` once under a lease of the device that all real work goes before. Returns its wall time."""
    with device.lease(due_s=time.monotonic() + _PATIENCE_S, label="calibration"):
        start_s = time.perf_counter()
        action()
        return (time.perf_counter() - start_s) * 1000


def quiet_cost(action: Callable[[], object], device: Device, *, repeats: int = 9) -> Cost:
    """What `action` costs on a quiet machine: the quicker two thirds of its runs, after one to warm up.

    Workers start together, and other programs run beside them; how much slower that makes steps is learned while
    serving.
    """
    timed_ms(action, device)
    samples_ms = sorted(timed_ms(action, device) for _ in range(repeats))
    return cost_of(samples_ms[: max(1, repeats * 2 // 3)])


def cost_of(samples_ms: Sequence[float]) -> Cost:
    """Mean and variance of measured times, both robust: a stall of the machine must not become the rule.

    The mean is the median; the variance is that of a normal distribution with the samples' interquartile range, and at
    least that of a 3 % deviation.
    """
    median = statistics.median(samples_ms)
    quartiles = statistics.quantiles(samples_ms, n=4) if len(samples_ms) > 1 else [median] * 3
    deviation = max((quartiles[2] - quartiles[0]) / 1.349, 0.03 * median)
    return Cost(median, deviation * deviation)


def _far_too_slow(kept: Curves, probe: Probe) -> bool:
    name, size, now = probe
    curve = kept.get(name)
    if curve is None:
        return True
    if now.mean_ms >= _TOO_SLOW * curve.at(size).mean_ms:
        return False
    log.info("the kept calibration is far too slow: %s at %d takes %.1f ms now", name, size, now.mean_ms)
    return True


def _name(key: Sequence[str]) -> str:
    host = (platform.node(), platform.machine(), _cpu_model(), str(os.cpu_count()))
    return hashlib.sha256("\0".join((*host, *key)).encode()).hexdigest()[:24]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _read(path: Path) -> Curves | None:
    try:
        file = _File.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        log.warning("calibration %s cannot be used: %s", path, error)
        return None
    if file.format != _FORMAT:
        return None
    try:
        return {name: StepCurve(tuple(map(_point, points))) for name, points in file.curves.items()}
    except ValueError as error:
        log.warning("calibration %s cannot be used: %s", path, error)
        return None


def _point(point: _Point) -> tuple[int, Cost]:
    return point.batch, Cost(point.mean_ms, point.var_ms2)


def _write(path: Path, curves: Curves) -> None:
    rows = {
        name: [{"batch": size, "mean_ms": cost.mean_ms, "var_ms2": cost.var_ms2} for size, cost in curve.points]
        for name, curve in curves.items()
    }
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"format": _FORMAT, "curves": rows}))
        temporary.replace(path)
    except OSError as error:
        log.warning("calibration cannot be kept in %s: %s", path.parent, error)
