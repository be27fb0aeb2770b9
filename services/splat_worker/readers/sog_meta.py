"""meta.json of a SOG scene: version 2 (codebooks) and the first one (linear ranges, no version field), checked.

Format: https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/sog
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headway.errors import BadInput
from services.splat_worker.readers.sog_archive import MEMBER_NAME

MAX_META_BYTES = 256 * 1024
MAX_PALETTE = 1 << 16  # labels have 16 bits
PALETTE_COLUMNS = 64  # palette entries side by side in the image of centroids
SH_BANDS = {3: 1, 8: 2, 15: 3}  # by coefficients per channel beyond degree 0
_SHOWN_PROBLEMS = 8

_Count = Annotated[int, Field(ge=1)]
_File = Annotated[str, Field(pattern=f"^{MEMBER_NAME}$")]
# Far beyond what the scene's checks let through, and far enough from the end of float32 to compute with.
_LogPosition = Annotated[float, Field(ge=-88, le=88)]
_Value = Annotated[float, Field(ge=-1e30, le=1e30)]
_Codebook = Annotated[tuple[_Value, ...], Field(min_length=256, max_length=256)]
_Three = tuple[_Value, _Value, _Value]
_Four = tuple[_Value, _Value, _Value, _Value]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class _Means(_Part):
    mins: tuple[_LogPosition, _LogPosition, _LogPosition]
    maxs: tuple[_LogPosition, _LogPosition, _LogPosition]
    files: tuple[_File, _File]  # low bytes, high bytes


class _Quats(_Part):
    files: tuple[_File]


class _Coded(_Part):
    codebook: _Codebook
    files: tuple[_File]


class _CodedPalette(_Part):
    count: Annotated[int, Field(ge=1, le=MAX_PALETTE)]
    bands: Annotated[int, Field(ge=1, le=3)]
    codebook: _Codebook
    files: tuple[_File, _File]  # centroids, labels


class SogMeta(_Part):
    """Version 2: values are indices into codebooks."""

    version: Literal[2]
    count: _Count
    means: _Means
    quats: _Quats
    scales: _Coded
    sh0: _Coded
    shN: _CodedPalette | None = None  # noqa: N815  the format's name


class _ShapedMeans(_Means):
    shape: tuple[_Count, Literal[3]]


class _RangedScales(_Part):
    mins: _Three
    maxs: _Three
    files: tuple[_File]


class _RangedColors(_Part):
    mins: _Four  # red, green, blue, opacity as a logit
    maxs: _Four
    files: tuple[_File]


class _RangedPalette(_Part):
    mins: _Value
    maxs: _Value
    files: tuple[_File, _File]  # centroids, labels


class SogMetaV1(_Part):
    """The first version: values are linear between bounds, and the palette's size follows from its image."""

    means: _ShapedMeans
    quats: _Quats
    scales: _RangedScales
    sh0: _RangedColors
    shN: _RangedPalette | None = None  # noqa: N815  the format's name

    @property
    def count(self) -> int:
        return self.means.shape[0]


class _Version(_Part):
    version: int | None = None


def parse_meta(data: bytes, max_gaussians: int) -> SogMeta | SogMetaV1:
    """Parse and check; raises BadInput naming the fields and their limits."""
    try:
        version = _Version.model_validate_json(data).version
        if version not in (None, 2):
            raise BadInput("meta.json version", f"{version}; must be 2, or absent as in the first version")
        kind = SogMetaV1 if version is None else SogMeta
        meta = kind.model_validate_json(data)
    except ValidationError as error:
        raise BadInput(_problems(error)) from None
    if meta.count > max_gaussians:
        raise BadInput("meta.json count", f"{meta.count}; the limit is {max_gaussians}")
    return meta


def _problems(error: ValidationError) -> dict[str, str]:
    shown = error.errors(include_url=False, include_context=False, include_input=False)[:_SHOWN_PROBLEMS]
    return {f"meta.json {'.'.join(map(str, problem['loc']))}".rstrip(): problem["msg"] for problem in shown}
