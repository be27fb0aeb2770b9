"""A worker whose calls fail while its reports look healthy is left out for a while, then comes back slowly.

    taken ──FAILURES in a row──► left out ──rest over──► one probe at a time ──it worked──► returning ──► taken
                                     ▲                        │ it failed                      │ a call failed
                                     └────────────────────────┴──────────(a longer rest)───────┘

Each router judges for itself, and each start of a worker anew. At least half of the healthy workers of a kind stay.
"""

import random
from collections.abc import Callable

from headway.deadline import Clock
from headway.errors import HeadwayError
from headway.v1 import errors_pb2

FAILURES = 3
"""In a row. Any answer in between begins the count anew."""
REST_S = 1.0
"""The first rest; each one that follows is twice as long."""
LONGEST_REST_S = 30.0
RETURN_S = 5.0
"""How long a worker that came back gets less than its share; it begins with a tenth."""
_LEAST_SHARE = 0.1
_MOST_DOUBLINGS = 5
_UNANSWERED_S = 1.0
_FAULTS = {errors_pb2.ERROR_REASON_WORKER_LOST, errors_pb2.ERROR_REASON_FAILED}


def is_fault(error: HeadwayError, *, begun: bool, waited_s: float) -> bool:
    """Whether an error speaks against the worker: it failed, was lost, or said nothing at all until the deadline.

    Silence counts only when the caller gave it at least a second: who sends tiny budgets must not get workers ejected.
    """
    silent = error.reason == errors_pb2.ERROR_REASON_EXPIRED and not begun and waited_s >= _UNANSWERED_S
    return silent or error.reason in _FAULTS


class Ejection:
    """How one worker's calls went. Belongs to one event loop."""

    def __init__(self, clock: Clock, *, may_leave: Callable[[], bool], changed: Callable[[], None]) -> None:
        """`may_leave`: whether enough others of its kind stay. `changed` is called when it leaves or comes back."""
        self._clock, self._may_leave, self._changed = clock, may_leave, changed
        self._failures = self._rests = 0
        self._probe_from_s: float | None = None
        self._probe: object | None = None
        self._returned_s: float | None = None

    @property
    def is_out(self) -> bool:
        """Whether it is left out, but for probes."""
        return self._probe_from_s is not None

    @property
    def wants_probe(self) -> bool:
        """Whether it is left out, has rested, and no probe is under way."""
        return self._probe_from_s is not None and self._probe is None and self._clock() >= self._probe_from_s

    def takes(self, draw: random.Random) -> bool:
        """Whether a request that is no probe may be placed there now. While it returns, a growing share of them may."""
        share = self._share()
        return not self.is_out and (share >= 1 or draw.random() < share)

    def sent(self, call: object) -> None:
        """A call was sent. Mutates; while the worker is left out, the first such call is the probe."""
        if self.is_out and self._probe is None:
            self._probe = call

    def over(self, call: object) -> None:
        """A call is over, however it went; after `worked` or `failed`. Mutates."""
        if self._probe is call:
            self._probe = None

    def worked(self, call: object) -> None:
        """An answer came back whole. Mutates; while the worker is left out, only the probe counts."""
        if not self.is_out:
            self._failures = 0
            if self._share() >= 1:
                self._rests, self._returned_s = 0, None
        elif call is self._probe:
            self._failures, self._probe_from_s, self._returned_s = 0, None, self._clock()
            self._changed()

    def failed(self, call: object) -> None:
        """A call failed through the worker's fault. Mutates; while the worker is left out, only the probe counts."""
        if self.is_out:
            if call is self._probe:
                self._rest()
            return
        self._failures += 1
        if (self._failures >= FAILURES or self._returned_s is not None) and self._may_leave():
            self._rest()
            self._changed()

    def _rest(self) -> None:
        rest_s = min(LONGEST_REST_S, REST_S * 2**self._rests)
        self._probe_from_s, self._returned_s = self._clock() + rest_s, None
        self._rests = min(self._rests + 1, _MOST_DOUBLINGS)

    def _share(self) -> float:
        if self._returned_s is None:
            return 1.0
        return min(1.0, max(_LEAST_SHARE, (self._clock() - self._returned_s) / RETURN_S))
