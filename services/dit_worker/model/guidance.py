"""How strongly a step is guided towards its class, by how far it jumps."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Guidance:
    """Weights by the length of a step, linear between those that are given and level beyond them.

    The longer a step, the more weight it bears before pictures get worse, so a ladder's rungs differ in it. A function
    of the step alone stays one however often the rest of a request is planned anew.
    """

    points: tuple[tuple[float, float], ...]
    """(length of a step in time, weight), lengths rising; one at least."""

    @classmethod
    def fixed(cls, weight: float) -> "Guidance":
        """The same weight for every step."""
        return cls(((1.0, weight),))

    @classmethod
    def by_steps(cls, weights: Mapping[int, float]) -> "Guidance":
        """From the weight for each number of equal steps."""
        return cls(tuple((1 / steps, weights[steps]) for steps in sorted(weights, reverse=True)))

    def at(self, t: float, s: float) -> float:
        """The weight of the step from t to s."""
        lengths, weights = zip(*self.points, strict=True)
        return float(np.interp(t - s, lengths, weights))

    def as_steps(self) -> dict[str, float]:
        """What `by_steps` was given, for a file."""
        return {str(round(1 / length)): weight for length, weight in self.points}


UNGUIDED = Guidance.fixed(1.0)
