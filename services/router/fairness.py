"""Which tenant goes first where requests wait: the one that lately got the least for its weight."""

from collections.abc import Callable

from headway.deadline import Clock

HALF_LIFE_S = 10.0
"""Work counts half after so long: who was away has no claim to all that he did not use, nor is a burst held against him
for ever."""
_MOST_TENANTS = 4096
_FORGOTTEN_MS = 1.0


class Shares:
    """What each tenant got of the workers, through this router. Belongs to one event loop."""

    def __init__(self, weight_of: Callable[[str], float], clock: Clock) -> None:
        """`weight_of`: how much of the workers a tenant is to get, compared with the others; above 0."""
        self.weight_of, self._clock = weight_of, clock
        self._got: dict[str, tuple[float, float]] = {}
        """By tenant: device ms, and when it was that much."""

    def served(self, tenant: str, device_ms: float) -> None:
        """Counts work that a worker has begun. Mutates."""
        if tenant not in self._got and len(self._got) >= _MOST_TENANTS:
            self._forget()
        self._got[tenant] = (self._lately_ms(tenant) + device_ms, self._clock())

    def used(self, tenant: str) -> float:
        """Device ms lately, for each unit of weight."""
        return self._lately_ms(tenant) / self.weight_of(tenant)

    def _lately_ms(self, tenant: str) -> float:
        got_ms, at_s = self._got.get(tenant, (0.0, 0.0))
        return got_ms and got_ms * 0.5 ** ((self._clock() - at_s) / HALF_LIFE_S)

    def _forget(self) -> None:
        """Drops tenants that got nearly nothing lately, and else the half that got the least."""
        by_work = sorted(self._got, key=self._lately_ms, reverse=True)
        kept = [tenant for tenant in by_work if self._lately_ms(tenant) > _FORGOTTEN_MS]
        self._got = {tenant: self._got[tenant] for tenant in kept[: _MOST_TENANTS // 2]}
