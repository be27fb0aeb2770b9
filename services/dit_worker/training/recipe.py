"""Every number that decides what a training run makes."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from services.dit_worker.model.topologies import TOPOLOGIES

DIGITS, SHAPES = TOPOLOGIES["digits"], TOPOLOGIES["shapes"]
LADDER = (4, 2, 1)


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training run. All rows take the flow term, a share of `jvp_share` the terminal-velocity term.

    A share of `guided_share` draws its guidance from 1 to `guidance_max`, the others have 1. Without `cooldown_steps`
    the rate falls as half a cosine; with it, it stays and falls linearly in so many last steps, and until then a run
    does not depend on `steps`. `autocast` runs linears and attention in bfloat16; weights and losses stay float32.
    """

    steps: int = 4500
    batch: int = 96
    seed: int = 0
    jvp_share: float = 0.4
    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.99
    clip_norm: float = 1.0
    warmup_steps: int = 100
    target_ema: float = 0.99
    sampling_ema: float = 0.998
    label_drop: float = 0.1
    guidance_max: float = 1.0
    guided_share: float = 1.0
    cooldown_steps: int | None = None
    autocast: bool = False

    def __post_init__(self) -> None:
        _require(self.steps > self.warmup_steps >= 1, "steps must exceed warmup_steps, which is at least 1")
        _require(0 < self.jvp_share <= 1, "jvp_share must lie in (0, 1]")
        _require(self.jvp_rows >= 1, "batch * jvp_share must be at least one row")
        _require(self.guidance_max >= 1, "guidance_max must be at least 1")
        _require(0 < self.guided_share <= 1, "guided_share must lie in (0, 1]")
        rest = self.steps - self.warmup_steps
        _require(
            self.cooldown_steps is None or 1 <= self.cooldown_steps <= rest, "cooldown_steps must fit after the warm-up"
        )
        _require(0 <= self.label_drop < 1, "label_drop must lie in [0, 1)")
        _require(0 <= self.target_ema < 1 and 0 <= self.sampling_ema < 1, "EMA rates must lie in [0, 1)")

    @property
    def level_until(self) -> int | None:
        """The step at which the cool-down begins; None without one."""
        return None if self.cooldown_steps is None else self.steps - self.cooldown_steps

    @property
    def jvp_rows(self) -> int:
        return int(self.batch * self.jvp_share)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up; then half a cosine to zero, or level until a linear cool-down."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.cooldown_steps is not None:
            return self.learning_rate * min(1.0, (self.steps - step) / self.cooldown_steps)
        done = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def continues(self, identity: dict[str, Any], step: int) -> bool:
        """Whether a state that recipe `identity` left at `step` is one that this recipe passes through."""
        mine = self.as_dict()
        if self.level_until is None or step > self.level_until:
            return identity == mine
        later = {"steps", "cooldown_steps"}
        level = step <= (identity.get("steps") or 0) - (identity.get("cooldown_steps") or 0)
        return level and all(identity.get(key) == value for key, value in mine.items() if key not in later)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


DIGITS_RECIPE = Recipe()
SHAPES_RECIPE = Recipe(
    steps=14200,
    batch=32,
    jvp_share=0.34,
    guidance_max=2.0,
    guided_share=0.25,
    cooldown_steps=1600,
    autocast=True,
)
