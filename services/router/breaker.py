"""A circuit breaker: something that failed again and again is left alone for a while."""

from headway.deadline import Clock


class Breaker:
    """Opens after `failures` in a row; then lets one try through every `rest_s`, until one works."""

    def __init__(self, clock: Clock, *, failures: int = 3, rest_s: float = 1.0) -> None:
        self._clock, self._most, self._rest_s = clock, failures, rest_s
        self._failed = 0
        self._next_try_s = 0.0

    def allows(self) -> bool:
        """Whether to try now; a yes while it is open counts as the one try."""
        if self._failed < self._most:
            return True
        now_s = self._clock()
        if now_s < self._next_try_s:
            return False
        self._next_try_s = now_s + self._rest_s
        return True

    def worked(self) -> None:
        """Closes it."""
        self._failed = 0

    def failed(self) -> None:
        """Counts a failure."""
        self._failed += 1
        if self._failed >= self._most:
            self._next_try_s = self._clock() + self._rest_s
