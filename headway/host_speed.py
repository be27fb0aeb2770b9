"""What an engine loop has learned of its host: how quick it is now, and for how long it stalls."""

import statistics
from collections import deque

from headway.cost import Cost, LearnedScale, LearnedStall

_STEADY = 1.5


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
        """How much longer than predicted a step may take: see `LearnedStall`."""
        return self._stall.value_ms

    def stepped(self, *, calibrated_ms: float, actual_ms: float) -> None:
        """Takes in one step. Mutates what is learned."""
        self._stall.observe(predicted_ms=calibrated_ms * self.scale.mean_ms, actual_ms=actual_ms)
        self._scale.observe(predicted_ms=calibrated_ms, actual_ms=actual_ms)

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
