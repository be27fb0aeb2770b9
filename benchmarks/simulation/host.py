"""How long a step takes on a host that is not alone."""

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Noise:
    """What a step's time does beside what was calibrated."""

    spread: float = 0.0
    """Standard deviation of a step over its mean; of a log-normal distribution. Calibration knows it."""
    slow_share: float = 0.0
    """Share of the time in which the host is slower; calibration does not know it."""
    slow_factor: float = 1.5
    slow_s: float = 2.0
    """Mean length of such a spell."""
    stall_chance: float = 0.0
    """Of a step to be held up; calibration does not know it."""
    stall_ms: float = 30.0


EXACT = Noise()


class Host:
    """One machine. Deterministic for a given source of randomness and order of steps."""

    def __init__(self, noise: Noise, draw: random.Random) -> None:
        self._noise, self._draw = noise, draw
        self._sigma = math.sqrt(math.log1p(noise.spread**2))
        self._slow, self._until_s = False, self._calm_s() if noise.slow_share else math.inf

    def slowness(self, now_s: float) -> float:
        """How many times longer than calibrated steps take now, in the mean."""
        while now_s >= self._until_s:
            self._slow = not self._slow
            self._until_s += self._draw.expovariate(1 / self._noise.slow_s) if self._slow else self._calm_s()
        return self._noise.slow_factor if self._slow else 1.0

    def step_ms(self, calibrated_ms: float, now_s: float) -> float:
        """What one step takes that begins now."""
        noise, taken_ms = self._noise, calibrated_ms * self.slowness(now_s)
        if self._sigma:
            taken_ms *= self._draw.lognormvariate(-(self._sigma**2) / 2, self._sigma)
        if noise.stall_chance and self._draw.random() < noise.stall_chance:
            taken_ms += noise.stall_ms
        return taken_ms

    def _calm_s(self) -> float:
        share = self._noise.slow_share
        return self._draw.expovariate(1 / (self._noise.slow_s * (1 - share) / share))
