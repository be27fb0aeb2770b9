"""What came of one request."""

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.experiment.arrivals import Arrival


@dataclass(frozen=True, slots=True)
class Record:
    """One request from its arrival to its end, on the generator's clock."""

    arrival: Arrival
    sent_late_ms: float
    """How late the generator sent it; an open loop that cannot keep up measures itself."""
    elapsed_ms: float
    """From sending to the end, whatever it was."""
    error: str | None = None
    """The reason of the refusal or failure; None when it was answered."""
    admitted: bool = False
    """A plan came: from then on the deadline was a promise."""
    rung: str | None = None
    quality: float = 0.0
    steps: int = 0
    slack_ms: float | None = None
    """As the worker told."""
    predicted_p50_ms: float | None = None
    predicted_p99_ms: float | None = None

    @property
    def answered(self) -> bool:
        return self.error is None

    @property
    def refused(self) -> bool:
        return not self.admitted

    @property
    def by_deadline(self) -> bool:
        return self.answered and self.elapsed_ms <= self.arrival.deadline_ms

    @property
    def by_target(self) -> bool:
        return self.answered and self.elapsed_ms <= self.arrival.target_ms

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
