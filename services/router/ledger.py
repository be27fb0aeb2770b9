"""What a router knows of one worker: what it reports, what was sent to it since, and how its calls went. No I/O."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from headway.cost import Load
from headway.deadline import Clock
from headway.errors import HeadwayError
from services.router.ejection import Ejection, is_fault
from services.router.view import Description, Report, View, make_view

REPORT_INTERVAL_S = 0.05
_LATENCY_WEIGHT = 0.1
"""Weight of the newest answer in the average."""


@dataclass(slots=True, eq=False)
class Sent:
    """A request that was sent to the worker, until a report knows of it."""

    load: Load
    sent_s: float
    admitted_s: float | None = None
    """When its plan came back."""
    call: Any = None
    """The call, once it is made."""
    gave_up: bool = False
    """The call was cancelled because the worker does not get on, not by the caller."""

    def known_to(self, received_s: float, interval_s: float) -> bool:
        """Whether a report that came at `received_s` counts it: after its plan, or two reports' intervals later."""
        return (self.admitted_s is not None and self.admitted_s <= received_s) or (
            received_s - self.sent_s >= 2 * interval_s
        )


class Ledger:
    """One worker in a router's books; a `services.router.roster.Worker`. Belongs to one event loop."""

    def __init__(
        self,
        address: str,
        clock: Clock,
        *,
        changed: Callable[[], None],
        may_leave: Callable[[], bool],
        interval_s: float = REPORT_INTERVAL_S,
    ) -> None:
        """`changed` is called when the worker is ejected or comes back; `may_leave` says whether it may be: see
        `Ejection`. `interval_s`: how often it reports while its state changes.
        """
        self.address, self.interval_s = address, interval_s
        self.description: Description | None = None
        self._report: Report | None = None
        self._unread: Callable[[], Report] | None = None
        self.latency_ms: float | None = None
        """Moving average of how long answers took from here; None before the first."""
        self._clock, self._changed, self._may_leave = clock, changed, may_leave
        self.ejection = self._new_ejection()
        self._sent: list[Sent] = []
        self._calls: list[Sent] = []
        self._view: View | None = None

    @property
    def report(self) -> Report | None:
        """The last one that came; None before the first."""
        if self._unread is not None:
            self._report, self._unread = self._unread(), None
        return self._report

    def view(self) -> View | None:
        """Its state for a prediction; None before its first report."""
        if self._view is None and self.description is not None and self.report is not None:
            self._view = make_view(self.address, self.description, self.report, [sent.load for sent in self._sent])
        return self._view

    @property
    def queue_depth(self) -> int:
        """Requests that it has admitted and not done, by its last report."""
        return 0 if self.report is None else self.report.in_flight

    @property
    def open_calls(self) -> int:
        """Calls from here to it that are not over."""
        return len(self._calls)

    def takes(self, draw: random.Random) -> bool:
        """Whether a request may be placed there now: see `Ejection`."""
        return self.ejection.takes(draw)

    @property
    def wants_probe(self) -> bool:
        """Whether one call should be sent to see how it does: see `Ejection`."""
        return self.ejection.wants_probe

    def described(self, description: Description) -> None:
        """Takes over what the worker says it is. Mutates the ledger."""
        before, self.description = self.description, description
        if before is None or before.worker_id != description.worker_id:
            self.ejection = self._new_ejection()  # a new process has done nothing wrong
        self._view = None

    def reported(self, report: Report) -> None:
        """Takes over a report, which stands for all that was sent before it. Mutates the ledger."""
        self.heard(report.received_s, lambda: report)

    def heard(self, received_s: float, read: Callable[[], Report]) -> None:
        """Takes over a report that came now. Mutates the ledger.

        `read` is called when a request asks for it: reading costs more than all the rest, and a busy worker reports
        more often than requests come.
        """
        self._unread = read
        self._sent = [sent for sent in self._sent if not sent.known_to(received_s, self.interval_s)]
        self._view = None

    def answered(self, sent: Sent) -> None:
        """Counts an answer that is complete now. Mutates the ledger."""
        self.ejection.worked(sent)
        taken_ms = (self._clock() - sent.sent_s) * 1000
        before_ms = taken_ms if self.latency_ms is None else self.latency_ms
        self.latency_ms = before_ms + _LATENCY_WEIGHT * (taken_ms - before_ms)

    def failed(self, sent: Sent, error: HeadwayError) -> None:
        """Counts an error that a call ended with, where it speaks against the worker. Mutates the ledger."""
        begun = sent.admitted_s is not None
        if is_fault(error, begun=begun, waited_s=self._clock() - sent.sent_s):
            self.ejection.failed(sent)

    @contextmanager
    def sending(self, load: Load) -> Iterator[Sent]:
        """Counts `load` as the worker's until a report does, or until the call is over."""
        sent = self.opened(load)
        try:
            yield sent
        finally:
            self.closed(sent)

    def opened(self, load: Load) -> Sent:
        """Begins what `sending` does; `closed` must follow. Mutates the ledger."""
        sent = Sent(load, self._clock())
        self._sent.append(sent)
        self._calls.append(sent)
        self.ejection.sent(sent)
        self._view = None
        return sent

    def closed(self, sent: Sent) -> None:
        """A call is over, however it went; after `answered` or `failed`. Mutates the ledger."""
        self._calls.remove(sent)
        self.ejection.over(sent)
        if sent in self._sent:
            self._sent.remove(sent)
            self._view = None

    def expect(self, load: Load) -> None:
        """Counts `load`, which a client will send itself, until a report could know of it. Mutates the ledger."""
        self._sent.append(Sent(load, self._clock()))
        self._view = None

    def _new_ejection(self) -> Ejection:
        return Ejection(self._clock, may_leave=self._may_leave, changed=self._changed)
