"""Keeps retries from making an outage worse."""

import math

_TOGETHER_S = 1.0
"""Calls that are cut off within this time of each other were cut off together."""


class RetryThrottle:
    """A bucket of tokens: a lost worker takes one, an answer gives a tenth back; below half of it nothing is retried.

    As gRPC's own retry throttling has it (proposal A6), but over all workers of the mesh: when most of them are lost,
    asking the others again for everything would take them too.
    """

    def __init__(self, *, tokens: float = 20.0, gain: float = 0.1) -> None:
        self._most = self._tokens = tokens
        self._gain = gain
        self._lost_at: dict[str, float] = {}

    @property
    def allows(self) -> bool:
        """Whether a retry may be made now."""
        return self._tokens > self._most / 2

    def lost(self) -> None:
        """Counts a lost worker. Mutates the throttle."""
        self._tokens = max(0.0, self._tokens - 1.0)

    def worker_lost(self, address: str, now_s: float) -> None:
        """Counts a lost worker once, however many calls it takes with it: else one that had many could not be replaced.

        Mutates the throttle.
        """
        if now_s - self._lost_at.get(address, -math.inf) >= _TOGETHER_S:
            self._lost_at = {each: at_s for each, at_s in self._lost_at.items() if now_s - at_s < _TOGETHER_S}
            self._lost_at[address] = now_s
            self.lost()

    def answered(self) -> None:
        """Counts an answer. Mutates the throttle."""
        self._tokens = min(self._most, self._tokens + self._gain)
