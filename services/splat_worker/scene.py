"""Scenes: what a reader returns, checked and cleaned once, so that no later stage has to doubt a number."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from headway.errors import BadInput

FloatArray = npt.NDArray[np.float32]

SH_COEFFICIENTS = (1, 4, 9, 16)  # per channel, for degrees 0 to 3
# Beyond these the projection would leave float32; no real scene comes near.
MAX_COORDINATE = 1e7
MAX_SCALE = 1e6
MAX_SH = 1e4
MIN_QUAT_NORM = 1e-6


@dataclass(frozen=True)
class SceneLimits:
    """What a scene may cost before it is read."""

    max_gaussians: int = 5_000_000
    max_file_bytes: int = 2 << 30


@dataclass(frozen=True)
class Gaussians:
    """What a file says, in gsplat's conventions but not checked: one row per gaussian, float32."""

    means: FloatArray  # [gaussians, 3]
    quats: FloatArray  # [gaussians, 4] wxyz, any length
    scales: FloatArray  # [gaussians, 3] linear
    opacities: FloatArray  # [gaussians] 0 to 1
    sh: FloatArray  # [gaussians, (degree + 1) ** 2, 3]


@dataclass(frozen=True)
class Scene:
    """A scene that is safe to render: finite, unit quaternions, contiguous float32 arrays that nobody
    writes to.

    `scene_id` is the hash of the cleaned gaussians in the file's order; reordering keeps it.
    """

    means: FloatArray  # [gaussians, 3]
    quats: FloatArray  # [gaussians, 4] wxyz, unit
    scales: FloatArray  # [gaussians, 3] linear, not negative
    opacities: FloatArray  # [gaussians] 0 to 1
    sh: FloatArray  # [gaussians, (degree + 1) ** 2, 3]
    scene_id: str
    dropped: int

    @property
    def count(self) -> int:
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        return SH_COEFFICIENTS.index(self.sh.shape[1])

    @property
    def memory_bytes(self) -> int:
        return sum(array.nbytes for array in _arrays(self))

    def prefix(self, count: int) -> "Scene":
        """The first `count` gaussians, without copying."""
        return replace(
            self,
            means=self.means[:count],
            quats=self.quats[:count],
            scales=self.scales[:count],
            opacities=self.opacities[:count],
            sh=self.sh[:count],
        )

    def permuted(self, order: npt.NDArray[np.int64]) -> "Scene":
        """The gaussians that `order` names, in that order, copied."""
        return replace(
            self,
            means=_frozen(self.means[order]),
            quats=_frozen(self.quats[order]),
            scales=_frozen(self.scales[order]),
            opacities=_frozen(self.opacities[order]),
            sh=_frozen(self.sh[order]),
        )


ARRAY_NAMES = ("means", "quats", "scales", "opacities", "sh")


def build_scene(raw: Gaussians) -> Scene:
    """Check shapes, drop gaussians that cannot be drawn and count them, normalise quaternions, hash.

    Raises BadInput when arrays disagree in shape.
    """
    _check_shapes(raw)
    keep = _drawable(raw)
    quats = raw.quats[keep]
    cleaned = Gaussians(
        means=_frozen(raw.means[keep]),
        quats=_frozen(quats / np.linalg.norm(quats, axis=1, keepdims=True)),
        scales=_frozen(raw.scales[keep]),
        opacities=_frozen(raw.opacities[keep]),
        sh=_frozen(raw.sh[keep]),
    )
    return Scene(
        means=cleaned.means,
        quats=cleaned.quats,
        scales=cleaned.scales,
        opacities=cleaned.opacities,
        sh=cleaned.sh,
        scene_id=_content_hash(cleaned),
        dropped=int(len(keep) - keep.sum()),
    )


def _arrays(gaussians: Gaussians | Scene) -> Iterator[FloatArray]:
    return (getattr(gaussians, name) for name in ARRAY_NAMES)


def _check_shapes(raw: Gaussians) -> None:
    count = len(raw.means)
    coefficients = raw.sh.shape[1] if raw.sh.ndim == 3 else 0
    if coefficients not in SH_COEFFICIENTS:
        raise BadInput("sh", f"{coefficients} coefficients per channel; must be one of {SH_COEFFICIENTS}")
    wanted = ((count, 3), (count, 4), (count, 3), (count,), (count, coefficients, 3))
    for name, array, shape in zip(ARRAY_NAMES, _arrays(raw), wanted, strict=True):
        if array.shape != shape:
            raise BadInput(name, f"shape {array.shape}; must be {shape}")


def _drawable(raw: Gaussians) -> npt.NDArray[np.bool_]:
    """Which gaussians are finite and within what float32 projection bears. Comparisons are false for NaN."""
    # One column at a time: an attacker's file must not cost several copies of itself.
    keep: npt.NDArray[np.bool_] = (raw.opacities >= 0) & (raw.opacities <= 1)
    for axis in range(3):
        keep &= np.abs(raw.means[:, axis]) <= MAX_COORDINATE
        keep &= (raw.scales[:, axis] >= 0) & (raw.scales[:, axis] <= MAX_SCALE)
    for coefficient in range(raw.sh.shape[1]):
        keep &= (np.abs(raw.sh[:, coefficient]) <= MAX_SH).all(axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(raw.quats, axis=1)
    keep &= (norms >= MIN_QUAT_NORM) & (norms <= 1 / MIN_QUAT_NORM)
    return keep


def _frozen(array: FloatArray) -> FloatArray:
    contiguous = np.ascontiguousarray(array, dtype=np.float32)
    contiguous.setflags(write=False)
    return contiguous


def _content_hash(gaussians: Gaussians) -> str:
    digest = hashlib.sha256()
    for array in _arrays(gaussians):
        digest.update(repr(array.shape).encode())
        digest.update(array.data)
    return digest.hexdigest()
