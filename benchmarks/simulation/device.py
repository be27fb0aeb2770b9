"""Who may run a step: a worker with a device of its own always, one of several by the arbiter's order."""

from collections.abc import Callable, Sequence
from typing import Protocol

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

    def declare(self, worker: str, demand: Sequence[Demand]) -> None: ...

    def others(self, worker: str) -> tuple[Demand, ...]: ...


class OwnDevice:
    """One worker's alone."""

    device_id = ""

    def lease(self, worker: str, due_s: float, start: Start) -> None:
        start()

    def rest(self, worker: str) -> None: ...

    def declare(self, worker: str, demand: Sequence[Demand]) -> None: ...

    def others(self, worker: str) -> tuple[Demand, ...]:
        return ()


class SharedDevice:
    """Several workers', one step at a time."""

    def __init__(self, device_id: str) -> None:
        self.device_id = device_id
        self._queue, self._board = LeaseQueue[str](), DemandBoard[str]()
        self._starts: dict[str, Start] = {}

    def lease(self, worker: str, due_s: float, start: Start) -> None:
        self._starts[worker] = start
        self._queue.end(worker)
        self._queue.ask(worker, 0, due_s, worker)
        self._grant()

    def rest(self, worker: str) -> None:
        self._queue.end(worker)
        self._grant()

    def declare(self, worker: str, demand: Sequence[Demand]) -> None:
        self._board.declare(worker, tuple(demand))

    def others(self, worker: str) -> tuple[Demand, ...]:
        return self._board.others(worker)

    def _grant(self) -> None:
        granted = self._queue.grant()
        if granted is not None:
            self._starts.pop(granted.client)()
