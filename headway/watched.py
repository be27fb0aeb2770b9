"""Files that may change while a service runs, such as certificates and keys: read again when they do."""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from headway.deadline import Clock

log = logging.getLogger(__name__)

T = TypeVar("T")
LOOK_S = 1.0
"""How often files are looked at, and so how long a change may go unseen."""

Stamp = tuple[tuple[int, int, int], ...]


class Watched(Generic[T]):
    """What files are read into. What cannot be read is logged, and what was read before stays. Safe between threads."""

    def __init__(
        self, name: str, paths: Sequence[Path], read: Callable[[], T], *, clock: Clock = time.monotonic
    ) -> None:
        """Reads at once, and raises what `read` raises. `name` is the setting's, for the log."""
        self._name, self._paths, self._read, self._clock = name, tuple(paths), read, clock
        self._lock = threading.Lock()
        self._stamp, self._value = self._stamped()
        self._looked_s = clock()

    def value(self) -> T:
        """As the files are now, or were at most `LOOK_S` ago. Blocks for a `stat`, seldom for a small file."""
        with self._lock:
            if self._clock() - self._looked_s >= LOOK_S:
                self._look()
            return self._value

    def _look(self) -> None:
        self._looked_s = self._clock()
        try:
            if _stamp(self._paths) == self._stamp:
                return
            self._stamp, self._value = self._stamped()
            log.info("%s: read anew", self._name)
        except (OSError, ValueError) as error:
            log.error("%s: what was read before stays: %s", self._name, error)

    def _stamped(self) -> tuple[Stamp, T]:
        """The stamp is taken first: a change while the files are read is seen at the next look."""
        return _stamp(self._paths), self._read()


def _stamp(paths: Sequence[Path]) -> Stamp:
    found = (os.stat(path) for path in paths)
    return tuple((state.st_mtime_ns, state.st_size, state.st_ino) for state in found)
