"""What a worker brings to its engine loop, and what the loop needs around it: see headway.engine_loop."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from headway.cost import Cost, Foreign
from headway.planning import Choice, Job, Setting
from headway.ticket import Event, Ticket


class Work(Protocol):
    """A worker's noun (`Sequence`, `Sample`, `Frame`): whatever it is, it carries a ticket."""

    @property
    def ticket(self) -> Ticket: ...


W = TypeVar("W", bound=Work)


@dataclass(frozen=True, slots=True)
class Batch(Generic[W]):
    """One step: what runs together, and what that should cost."""

    stage: str
    """Name of the stage for `Served` and the trace, e.g. "prefill"."""
    works: tuple[W, ...]
    items: int
    """Sequences, images, or 1 for a frame."""
    predicted: Cost

    def after(self, job: Job) -> Job | None:
        """What is left of a job in this step when it is done; None: nothing.

        As calibrated, and rather too much than too little. Pure.
        """
        return one_step_less(job)


def one_step_less(job: Job) -> Job | None:
    """A job without the options that one step ends; None when it ends all of them."""
    options = tuple(
        replace(option, load=replace(option.load, steps_left=option.load.steps_left - 1))
        for option in job.options
        if option.load.steps_left > 1
    )
    return replace(job, options=options) if options else None


class Scheduler(Protocol[W]):
    """Decides; pure but for reading the works it is given."""

    def setting(self, now_s: float, foreign: Foreign, scale: Cost) -> Setting:
        """What the planner must know: step costs as calibrated, `scale`, batch limit, quantiles."""

    def job(self, work: W, now_s: float) -> Job:
        """The rungs that `work` may still take from now, best first, and what is left to do at each, as calibrated."""

    def next_batch(self, works: Sequence[W], now_s: float, scale: Cost) -> "Batch[W] | None":
        """The next step over admitted works, which come in the planner's order; None when none is ready."""


class Engine(Protocol[W]):
    """Runs steps."""

    def run(self, batch: Batch[W]) -> Any:
        """Runs one step on the device; blocks. Called without the lock, so it must not change what `job` reads."""

    def apply(self, batch: Batch[W], result: Any, now_s: float) -> list[tuple[Ticket, Event]]:
        """Takes a step's result into the works and says what to send; quick.

        Ends a work with `Finished` or an error.
        """

    def release(self, work: W) -> None:
        """Frees what `work` holds (slots, blocks). Called once for every work that was admitted."""


class Lease(Protocol):
    """The device, for one step."""

    @property
    def wait_s(self) -> float: ...

    @property
    def granted(self) -> bool:
        """False when no arbiter answered, and the step runs all the same."""


class Device(Protocol):
    """Grants the device to one step at a time; see headway.device."""

    def lease(self, *, due_s: float, label: str, keep: bool = False) -> AbstractContextManager[Lease]:
        """Holds the device for the block; with `keep` until the next lease or `rest`."""

    def rest(self) -> None:
        """Gives a kept lease back."""

    def hurry(self, due_s: float) -> None:
        """Asks anew where a lease is waited for and this is due earlier; from any thread."""

    def declare(self, demand: Sequence[tuple[float, float]], *, step_end_s: float | None = None) -> None:
        """Tells others what is to come, and when the step should end that has begun under the lease."""

    def others(self) -> tuple[tuple[float, float], ...]:
        """What others have to do, by deadline."""

    @property
    def busy_until_s(self) -> float | None:
        """When the step of another that runs now should end; None when none is known to run."""


class Observer(Protocol):
    """Is told what happened, for metrics; see headway.worker."""

    def stepped(self, batch: Batch[Any], actual_ms: float, queued: int, lease: Lease) -> None: ...

    def finished(self, ticket: Ticket, now_s: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Pulse:
    """A small step that a worker at rest runs now and then, to know how quick the host is.

    Without it, one that was calibrated on a busy machine, or saw a slow spell, would refuse what it could do, and by
    refusing everything never learn better.
    """

    predicted: Cost
    """As calibrated."""
    run: Callable[[], object]
    """Called in the engine's thread, under a lease, while nothing is admitted."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The loop's state at one time."""

    now_s: float
    setting: Setting
    """Of this worker's own work alone: nothing of what others do, or it itself will do later, is in it."""
    foreign: Foreign
    """What others on the device have to do."""
    choices: tuple[Choice, ...]
    """By deadline."""
    in_flight: int
    draining: bool
