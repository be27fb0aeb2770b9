"""A worker whose state stands still, for tests of what is decided from it."""

import random
from dataclasses import dataclass

from services.router.view import Description, View


@dataclass(eq=False)
class Still:
    state: View
    open_calls: int = 0
    latency_ms: float | None = None
    ejected: bool = False
    wants_probe: bool = False
    looks: int = 0
    """How often its state was asked for."""

    @property
    def address(self) -> str:
        return self.state.address

    @property
    def description(self) -> Description:
        return self.state.description

    @property
    def queue_depth(self) -> int:
        return self.state.report.in_flight

    def takes(self, draw: random.Random) -> bool:
        return not self.ejected

    def view(self) -> View:
        self.looks += 1
        return self.state
