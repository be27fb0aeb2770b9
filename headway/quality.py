"""Rungs and ladders, and what a caller's service level leaves of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headway.errors import BadInput, NoSuchRung
from headway.v1 import common_pb2

MAX_LABEL_BYTES = 64


@dataclass(frozen=True, slots=True)
class Rung:
    """One quality setting of a worker."""

    label: str
    quality: float
    """Normalised, 0 to 1; the top rung has 1."""
    nfe: int | None = None
    """Images: function evaluations."""
    dfd: float | None = None
    """Images: measured DFD; lower is better."""
    psnr_db: float | None = None
    """Splats: measured PSNR to the top rung; None on the top rung."""
    gaussian_share: float | None = None
    """Splats: share of the gaussians, 0 to 1."""
    resolution_scale: float | None = None
    """Splats: rendered side over the side asked for, 0 to 1."""
    token_share: float | None = None
    """Text: share of the tokens asked for, 0 to 1."""
    ssim: float | None = None
    """Splats: measured SSIM to the top rung; None on the top rung and where it was not measured."""

    def to_proto(self) -> common_pb2.Rung:
        """The rung as the contract carries it."""
        fields = ("nfe", "dfd", "psnr_db", "gaussian_share", "resolution_scale", "token_share", "ssim")
        known = {name: getattr(self, name) for name in fields if getattr(self, name) is not None}
        return common_pb2.Rung(label=self.label, quality=self.quality, **known)


@dataclass(frozen=True, slots=True)
class Ladder:
    """A worker's rungs for one model or scene, best first.

    Raises ValueError when they are not in falling order of quality.
    """

    rungs: tuple[Rung, ...]

    def __post_init__(self) -> None:
        qualities = [rung.quality for rung in self.rungs]
        if not self.rungs or len({rung.label for rung in self.rungs}) != len(self.rungs):
            raise ValueError("a ladder needs at least one rung, and no two with the same label")
        if qualities != sorted(qualities, reverse=True) or not all(0 <= quality <= 1 for quality in qualities):
            raise ValueError(f"a ladder's qualities fall from at most 1 to at least 0, not {qualities}")

    @property
    def top(self) -> Rung:
        return self.rungs[0]

    def to_proto(self) -> common_pb2.Ladder:
        """The ladder as the contract carries it."""
        return common_pb2.Ladder(rungs=[rung.to_proto() for rung in self.rungs])


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller's service level asks for, checked; `allowed` is never empty."""

    priority: int
    """1 low, 2 normal, 3 high."""
    allowed: tuple[Rung, ...]
    """The rungs that the caller accepts, best first."""
    exact: bool
    floored: bool
    target_s: float | None
    """From the call's start; None: the kind's default."""
    min_tokens: int | None = None
    """Text only: the floor in tokens."""


def read_wish(level: common_pb2.ServiceLevel, ladder: Ladder, kind: int) -> Wish:
    """Checks a request's service level against a ladder.

    Raises `BadInput` for values out of range or of another kind of work, and `NoSuchRung` when nothing on the ladder
    will do.
    """
    if level.priority not in common_pb2.Priority.values():
        raise BadInput("service_level.priority", f"must be one of {common_pb2.Priority.keys()}, not {level.priority}")
    choice = level.WhichOneof("quality")
    allowed, min_tokens = ladder.rungs, None
    if choice == "exact":
        allowed = _exactly(level.exact, ladder)
    elif choice == "at_least":
        allowed = _at_least(level.at_least, ladder, kind)
        min_tokens = level.at_least.tokens if level.at_least.WhichOneof("floor") == "tokens" else None
    return Wish(
        priority=level.priority or common_pb2.PRIORITY_NORMAL,
        allowed=allowed,
        exact=choice == "exact",
        floored=choice == "at_least",
        target_s=_target_s(level),
        min_tokens=min_tokens,
    )


def _target_s(level: common_pb2.ServiceLevel) -> float | None:
    if not level.HasField("target"):
        return None
    target_s = level.target.seconds + level.target.nanos / 1e9
    if target_s <= 0:
        raise BadInput("service_level.target", f"must be more than 0 s, not {target_s} s")
    return target_s


def _exactly(label: str, ladder: Ladder) -> tuple[Rung, ...]:
    if len(label.encode()) > MAX_LABEL_BYTES:
        raise BadInput("service_level.exact", f"must be at most {MAX_LABEL_BYTES} bytes")
    rungs = tuple(rung for rung in ladder.rungs if rung.label == label)
    if not rungs:
        raise NoSuchRung(f"service_level.exact: no rung {label!r}; the ladder has {_labels(ladder)}")
    return rungs


def _at_least(floor: common_pb2.QualityFloor, ladder: Ladder, kind: int) -> tuple[Rung, ...]:
    measure = floor.WhichOneof("floor")
    keep = _floor_test(floor, measure, kind)
    rungs = tuple(rung for rung in ladder.rungs if keep(rung))
    if not rungs:
        wanted = getattr(floor, measure or "")
        field = f"service_level.at_least.{measure}"
        raise NoSuchRung(f"{field}: no rung reaches {wanted}; the ladder has {_labels(ladder)}")
    return rungs


def _floor_test(floor: common_pb2.QualityFloor, measure: str | None, kind: int) -> Callable[[Rung], bool]:
    if measure == "normalised":
        _in_range("normalised", floor.normalised, 0, 1)
        return lambda rung: rung.quality >= floor.normalised
    if measure == "nfe" and kind == common_pb2.KIND_IMAGE:
        _in_range("nfe", floor.nfe, 1, 1_000_000)
        return lambda rung: (rung.nfe or 0) >= floor.nfe
    if measure == "psnr_db" and kind == common_pb2.KIND_SPLAT:
        _in_range("psnr_db", floor.psnr_db, 0, 200)
        return lambda rung: rung.psnr_db is None or rung.psnr_db >= floor.psnr_db
    if measure == "tokens" and kind == common_pb2.KIND_TEXT:
        _in_range("tokens", floor.tokens, 1, 1_000_000)
        return lambda rung: True  # a floor in tokens bounds the length, not the rung
    raise BadInput("service_level.at_least", f"{measure or 'an empty floor'} is not a measure of this kind of work")


def _in_range(measure: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses NaN
        raise BadInput(f"service_level.at_least.{measure}", f"must be {low} to {high}, not {value}")


def _labels(ladder: Ladder) -> Sequence[str]:
    return [rung.label for rung in ladder.rungs]
