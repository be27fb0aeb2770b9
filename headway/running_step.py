"""The step that an engine runs now, which nothing stops: what is admitted meanwhile begins behind it. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from headway.engine import Batch
from headway.jobs import Job


@dataclass(eq=False)
class RunningStep:
    """A step, until the queue is planned anew: what is left of it, and of the jobs in it when it is done."""

    batch: Batch[Any]
    before: Mapping[int, Job]
    """The jobs in it as they were planned for it, by key."""
    end_s: float
    """When it should end, or did; monotonic."""

    def busy_ms(self, now_s: float) -> float:
        """How long nothing else can begin; a step that is overdue may end any moment."""
        return max(0.0, self.end_s - now_s) * 1000

    def jobs(self, planned: Iterable[Job]) -> list[Job]:
        """What is left to do of all that is planned when the step is done; a job planned since is left as it is."""
        after = [self._after.get(job.key, job) if self.before.get(job.key) is job else job for job in planned]
        return [job for job in after if job is not None]

    @cached_property
    def _after(self) -> dict[int, Job | None]:
        return {key: self.batch.after(job) for key, job in self.before.items()}


def begin(batch: Batch[Any], start_s: float, slowness: float) -> RunningStep:
    """A step that begins now on a host that is so much slower than calibrated."""
    tickets = [work.ticket for work in batch.works]
    before = {ticket.key: ticket.choice.job for ticket in tickets if ticket.choice is not None}
    predicted_ms = batch.predicted.mean_ms * slowness
    return RunningStep(batch, before, start_s + predicted_ms / 1000)
