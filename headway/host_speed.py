"""What an engine loop has learned of its host: how quick it is now, and for how long it stalls."""

import statistics
from collections import deque

from headway.cost import Cost, LearnedScale, LearnedStall

_STEADY = 1.5
_MOST = 0.999
"""What a step takes at most in this share of cases is in its own variance; what it takes beyond is a stall."""


class HostSpeed:
    """Learned from steps, and from pulses while there are none. Used under the engine loop's lock."""

    def __init__(self) -> None:
        self._scale, self._stall = LearnedScale(), LearnedStall()
        self._pulses: deque[float] = deque(maxlen=3)

    @property
    def scale(self) -> Cost:
        """How much slower or faster than calibrated steps are: see `LearnedScale`."""
        return self._scale.value

    @property
    def stall_ms(self) -> float:
        """How much longer a step may take than its own variance says: see `LearnedStall`."""
        return self._stall.value_ms

    def stepped(self, calibrated: Cost, actual_ms: float) -> None:
        """Takes in one step. Mutates what is learned."""
        self._stall.observe(most_ms=calibrated.scaled(self.scale).quantile_ms(_MOST), actual_ms=actual_ms)
        self._scale.observe(predicted_ms=calibrated.mean_ms, actual_ms=actual_ms)

    def pulsed(self, ratio: float) -> bool:
        """Takes in a pulse that took so many times what was calibrated; returns whether that was as expected.

        Where it was, real steps, of the sizes that are asked for, know better, and nothing is learned.
        """
        self._pulses.append(ratio)
        ratio = statistics.median(self._pulses)
        steady = 1 / _STEADY < ratio / self.scale.mean_ms < _STEADY
        if not steady:
            self._scale.settle(ratio)
        return steady
