"""Every number that decides what a training run makes."""

from dataclasses import asdict, dataclass

from services.dit_worker.model.topology import Topology

DIGITS = Topology(image_px=8, channels=1, patch_px=2, width=96, depth=4, heads=4, classes=10)
LADDER = (4, 2, 1)


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training run. All rows take the flow term, a share of `jvp_share` the terminal-velocity term."""

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

    def __post_init__(self) -> None:
        _require(self.steps > self.warmup_steps >= 1, "steps must exceed warmup_steps, which is at least 1")
        _require(0 < self.jvp_share <= 1, "jvp_share must lie in (0, 1]")
        _require(self.jvp_rows >= 1, "batch * jvp_share must be at least one row")
        _require(self.guidance_max >= 1, "guidance_max must be at least 1")
        _require(0 <= self.label_drop < 1, "label_drop must lie in [0, 1)")
        _require(0 <= self.target_ema < 1 and 0 <= self.sampling_ema < 1, "EMA rates must lie in [0, 1)")

    @property
    def jvp_rows(self) -> int:
        return int(self.batch * self.jvp_share)

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
