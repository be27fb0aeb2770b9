"""Who may run a step: a worker with a device of its own always, one of several by the arbiter's order."""

from collections.abc import Callable, Sequence
from typing import Protocol

from benchmarks.simulation.clock import Clock
from headway.device.order import DemandBoard, LeaseQueue
from headway.device.wire import Demand

Start = Callable[[], None]


class Device(Protocol):
    """As `headway.engine.Device`, without waiting: `start` is called when the step may begin."""

    device_id: str

    def lease(self, worker: str, due_s: float, start: Start) -> None:
        """Asks for the device; a lease that the worker keeps from its last step ends with that."""

    def rest(self, worker: str) -> None:
        """Gives a kept lease back."""

    def declare(self, worker: str, demand: Sequence[tuple[float, float]], step_end_s: float | None = None) -> None: ...

    def others(self, worker: str) -> tuple[Demand, ...]: ...

    def busy_until_s(self, worker: str) -> float | None:
        """When the step that another worker runs now should end."""


class OwnDevice:
    """One worker's alone."""

    device_id = ""

    def lease(self, worker: str, due_s: float, start: Start) -> None:
        start()

    def rest(self, worker: str) -> None: ...

    def declare(self, worker: str, demand: Sequence[tuple[float, float]], step_end_s: float | None = None) -> None: ...

    def others(self, worker: str) -> tuple[Demand, ...]:
        return ()

    def busy_until_s(self, worker: str) -> float | None:
        return None


class SharedDevice:
    """Several workers', one step at a time."""

    def __init__(self, device_id: str, clock: Clock, tell_s: float) -> None:
        """`tell_s`: until the others know what one declares."""
        self.device_id = device_id
        self._clock, self._tell_s = clock, tell_s
        self._queue, self._board = LeaseQueue[str](), DemandBoard[str]()
        self._starts: dict[str, Start] = {}
        self._leases: dict[str, int] = {}
        """The last of each worker."""

    def lease(self, worker: str, due_s: float, start: Start) -> None:
        self._starts[worker] = start
        self._queue.end(worker)
        self._leases[worker] = self._leases.get(worker, 0) + 1
        self._queue.ask(worker, self._leases[worker], due_s, worker)
        self._grant()

    def rest(self, worker: str) -> None:
        self._queue.end(worker)
        self._grant()

    def declare(self, worker: str, demand: Sequence[tuple[float, float]], step_end_s: float | None = None) -> None:
        declared = tuple(Demand(*row) for row in demand)
        self._clock.at(
            self._clock.now_s + self._tell_s, self._told, worker, declared, self._leases.get(worker, 0), step_end_s
        )

    def _told(self, worker: str, demand: tuple[Demand, ...], lease_id: int, step_end_s: float | None) -> None:
        self._board.declare(worker, demand)
        if step_end_s is not None:
            self._queue.running(worker, lease_id, step_end_s)

    def others(self, worker: str) -> tuple[Demand, ...]:
        return self._board.others(worker)

    def busy_until_s(self, worker: str) -> float | None:
        return self._queue.busy_until_s(worker)

    def _grant(self) -> None:
        granted = self._queue.grant()
        if granted is not None:
            self._starts.pop(granted.client)()
