"""The shape of a diffusion transformer: everything that decides which tensors a checkpoint holds."""

from dataclasses import asdict, dataclass, fields
from typing import Any

LIMITS: dict[str, tuple[int, int]] = {
    "image_px": (1, 1024),
    "channels": (1, 64),
    "patch_px": (1, 64),
    "width": (8, 8192),
    "depth": (1, 128),
    "heads": (1, 128),
    "classes": (1, 100_000),
    "mlp_ratio": (1, 16),
    "frequencies": (1, 1024),
}


class TopologyError(ValueError):
    """A topology that cannot be built; the message names the field and its limit."""


@dataclass(frozen=True, slots=True)
class Topology:
    """Square images of `channels` planes, cut into `patch_px` patches, one token each.

    Class ids are 0 .. classes - 1; the id `classes` is the null class that label drop trains.
    Raises TopologyError on a field outside LIMITS or on sizes that do not divide.
    """

    image_px: int
    channels: int
    patch_px: int
    width: int
    depth: int
    heads: int
    classes: int
    mlp_ratio: int = 4
    frequencies: int = 32

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise TopologyError(f"{name} must be a whole number in {low}..{high}, got {value!r}")
        if self.image_px % self.patch_px:
            raise TopologyError(f"image_px {self.image_px} is not a multiple of patch_px {self.patch_px}")
        if self.width % self.heads:
            raise TopologyError(f"width {self.width} is not a multiple of heads {self.heads}")

    @property
    def tokens(self) -> int:
        return (self.image_px // self.patch_px) ** 2

    @property
    def patch_values(self) -> int:
        return self.channels * self.patch_px**2

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[channels, height, width]."""
        return (self.channels, self.image_px, self.image_px)

    @property
    def null_class(self) -> int:
        return self.classes

    def as_dict(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Topology":
        """Strict: a missing or unknown key is a TopologyError, not a default."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise TopologyError(f"unknown topology field {unknown[0]!r}; known: {', '.join(sorted(known))}")
        if missing := sorted(known - set(values)):
            raise TopologyError(f"topology field {missing[0]!r} is missing")
        return cls(**values)
