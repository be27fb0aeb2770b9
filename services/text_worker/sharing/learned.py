"""What it costs to restore blocks, learned while it is done, and whether that beats computing them. Takes no time."""

from dataclasses import dataclass

from headway.cost import ZERO, Cost

RISE, FALL = 0.5, 0.1
"""Weights of the newest time in the mean, where it is more than that and where it is less: slowness counts at once."""
LEAST_SHARE = 0.02
"""However seldom blocks were there lately, one prompt in fifty may be worth asking for: or none would ever be found."""
_SHARE_WEIGHT = 0.05


class LearnedTime:
    """Mean and variance of a time that is measured again and again."""

    def __init__(self) -> None:
        self._mean_ms: float | None = None
        self._var_ms2 = 0.0

    @property
    def cost(self) -> Cost | None:
        """None before the first time."""
        return None if self._mean_ms is None else Cost(self._mean_ms, self._var_ms2)

    def observe(self, ms: float) -> None:
        """Takes in one. Mutates."""
        if self._mean_ms is None:
            self._mean_ms = ms
            return
        apart = ms - self._mean_ms
        weight = RISE if apart > 0 else FALL
        self._mean_ms += weight * apart
        self._var_ms2 += FALL * (apart * apart - self._var_ms2)


@dataclass(frozen=True, slots=True)
class RestoreCost:
    """What restoring so many blocks should take, from asking until they can be used."""

    asking: Cost
    fetching: Cost

    @property
    def whole(self) -> Cost:
        return self.asking + self.fetching


class RestoreCosts:
    """One store's. Belongs to the event loop."""

    def __init__(self, taking_in: Cost, quantile: float) -> None:
        """`taking_in`: device time to write one block into the cache. `quantile`: how sure a gain must be."""
        self._taking_in, self._quantile = taking_in, quantile
        self._trip, self._block = LearnedTime(), LearnedTime()
        self._share = 0.5

    @property
    def known(self) -> bool:
        """Whether both times were measured."""
        return self._trip.cost is not None and self._block.cost is not None

    def asked(self, ms: float) -> None:
        """Asking which blocks are there took so long. Mutates."""
        self._trip.observe(ms)

    def found(self, share: float) -> None:
        """So much of what a prompt wanted was there. Mutates."""
        self._share += _SHARE_WEIGHT * (share - self._share)

    def fetched(self, blocks: int, ms: float) -> None:
        """Fetching and checking so many blocks took so long. Mutates."""
        self._block.observe(ms / blocks)

    def restoring(self, blocks: int) -> RestoreCost:
        """The prediction for `blocks`; only once `known`."""
        assert self._trip.cost is not None
        assert self._block.cost is not None
        # How long a block takes is common to all of them: a slow network slows each.
        return RestoreCost(self._trip.cost, Cost(blocks).scaled(self._block.cost) + self._taking_in.times(blocks))

    def saved_ms(self, blocks: int, computing: Cost) -> float:
        """What fetching blocks that are there saves of `computing` them, rather too little than too much."""
        return computing.mean_ms - self.restoring(blocks).fetching.quantile_ms(self._quantile)

    def worth_asking(self, blocks: int, computing: Cost) -> bool:
        """Whether what is saved where blocks are there makes up for the round trip where they are not."""
        if not self.known:
            return False
        asking_ms = (self._trip.cost or ZERO).quantile_ms(self._quantile)
        return max(self._share, LEAST_SHARE) * self.saved_ms(blocks, computing) > asking_ms

    def worth_writing(self, blocks: int, computing: Cost) -> bool:
        """Whether others would restore them, if it costs them what it costs here."""
        return self.known and computing.mean_ms > self.restoring(blocks).whole.quantile_ms(self._quantile)
