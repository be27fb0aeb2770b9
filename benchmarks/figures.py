"""The few statistics that the benchmarks report, and where they write."""

import json
import math
import os
import platform
import random
import statistics
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_RESAMPLES = 1000


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed; NaN for none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


def interval(values: Sequence[float], of: Callable[[Sequence[float]], float] = statistics.median) -> list[float]:
    """A 95 % bootstrap interval of a statistic; seeded, so that the same values give the same interval."""
    if len(values) < 2:
        return [math.nan, math.nan]
    draw = random.Random(0)
    found = sorted(of(draw.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return [found[int(0.025 * _RESAMPLES)], found[int(0.975 * _RESAMPLES)]]


def share_interval(hits: int, total: int) -> list[float]:
    """The 95 % Wilson interval of a share."""
    if total == 0:
        return [0.0, 1.0]
    z, share = 1.96, hits / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return [max(0.0, centre - half), min(1.0, centre + half)]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    names = [line for line in _cpuinfo() if line.startswith("model name")]
    return {
        "cpu": names[0].partition(":")[2].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("grpcio", "torch", "numba", "numpy")},
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def write(name: str, figures: dict[str, Any]) -> Path:
    """Writes figures with the machine they were measured on to `benchmarks/results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **figures}, indent=1, default=str) + "\n")
    return path
