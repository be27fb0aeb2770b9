"""How quick the worker's cores are now: a shared host may differ by a third from minute to minute."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable

from benchmarks.experiment.worker import Cores

PROBE = """
import time
import numpy as np
a = np.random.default_rng(0).random((256, 256), dtype=np.float32)
end_s, rounds = time.perf_counter() + 0.2, 0
while time.perf_counter() < end_s: a @ a
end_s = time.perf_counter() + 0.8
while time.perf_counter() < end_s:
    a @ a
    sum(range(5000))
    rounds += 1
print(rounds)
"""
"""Compiled code and Python, in about equal shares."""


async def rounds_now(cores: Cores) -> float:
    """Rounds of a fixed piece of work in a moment, on the worker's cores, which should be at rest."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROBE,
        env={**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")},
        stdout=asyncio.subprocess.PIPE,
    )
    if cores.worker is not None:
        os.sched_setaffinity(process.pid, cores.worker)
    told, _ = await process.communicate()
    return float(told)


class HostSpeed:
    """The host's speed around each measurement, over that around the first."""

    def __init__(self, look: Callable[[], Awaitable[float]]) -> None:
        """`look`: a speed in any unit; see `rounds_now`."""
        self._look = look
        self._first: float | None = None
        self._last: float | None = None

    async def since_last(self) -> float:
        """Looks again; the mean of this look and the last one, over what the first two looks gave. Mutates."""
        before, self._last = self._last, await self._look()
        mean = self._last if before is None else (before + self._last) / 2
        if before is not None and self._first is None:
            self._first = mean
        return mean / (self._first or mean)
