"""Gaussians in .ksplat (mkkellogg/GaussianSplats3D): version 0.1, modes 0 (float32), 1 (float16), 2 (8-bit harmonics).

The file is a header of 4096 bytes, one header of 1024 bytes for each section, then the sections: lengths of the partly
filled buckets, the buckets' centres, the gaussians. In modes 1 and 2 a position is an offset from its bucket's centre.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headway.errors import BadInput
from services.splat_worker.readers.activations import dc_of_bytes, shares_of_bytes
from services.splat_worker.scene import SH_COEFFICIENTS, FloatArray, Gaussians, SceneLimits

HEADER_BYTES, SECTION_BYTES, CENTER_BYTES = 4096, 1024, 12
MODES = (("<f4", "<f4", "<f4"), ("<u2", "<f2", "<f2"), ("<u2", "<f2", "u1"))
"""Types of a position, of scales and rotations, and of harmonics."""
MAX_SECTIONS = 4096
DEFAULT_RANGE, DEFAULT_HARMONICS = 32767, 1.5
_VERSION = (0, 1)
_HEADER = struct.Struct("<BB2xIIIIH2x12xff")
_SECTION = struct.Struct("<IIIIfH2xIIIIH")


@dataclass(frozen=True)
class Header:
    """The file's header; offsets of its fields are in the errors."""

    sections: int
    gaussians: int
    mode: int
    harmonics: tuple[float, float]
    """What 0 and 255 stand for in mode 2."""


@dataclass(frozen=True)
class Section:
    """One section, proved to lie inside the file."""

    mode: int
    gaussians: int
    degree: int
    bucket_size: int
    full_buckets: int
    partial_buckets: int
    buckets: int
    block_size: float
    steps: int
    """Steps of a position from a bucket's centre to its side."""
    offset: int
    room: int
    """Gaussians that there is room for; only the first `gaussians` are meant."""
    bucket_bytes: int

    @property
    def row(self) -> "np.dtype[np.void]":
        position, values, harmonics = MODES[self.mode]
        coefficients = 3 * (SH_COEFFICIENTS[self.degree] - 1)
        fields = [("mean", position, 3), ("scale", values, 3), ("quat", values, 4), ("color", "u1", 4)]
        return np.dtype([*fields, ("sh", harmonics, coefficients)] if coefficients else fields)

    @property
    def centers_offset(self) -> int:
        return self.offset + 4 * self.partial_buckets

    @property
    def rows_offset(self) -> int:
        return self.centers_offset + self.bucket_bytes * self.buckets

    @property
    def end(self) -> int:
        return self.rows_offset + self.row.itemsize * self.room


def read_ksplat(path: Path, limits: SceneLimits) -> Gaussians:
    """Read any mode; raises BadInput naming the field and its byte offset."""
    data = path.read_bytes()
    header = _read_header(data, limits)
    sections = _read_sections(data, header)
    degree = max((section.degree for section in sections), default=0)
    parts = [_decode(data, section, header, degree) for section in sections if section.gaussians]
    if not parts:
        raise BadInput("header.splat_count", "0 at offset 16: no gaussians")
    names = ("means", "quats", "scales", "opacities", "sh")
    return Gaussians(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _read_header(data: bytes, limits: SceneLimits) -> Header:
    if len(data) < HEADER_BYTES:
        raise BadInput("header", f"{len(data)} bytes; must be {HEADER_BYTES}")
    major, minor, sections, _, _, gaussians, mode, low, high = _HEADER.unpack_from(data)
    if (major, minor) != _VERSION:
        raise BadInput("header.version", f"{major}.{minor} at offset 0; must be 0.1")
    if not 1 <= sections <= MAX_SECTIONS or HEADER_BYTES + sections * SECTION_BYTES > len(data):
        raise BadInput(
            "header.max_section_count", f"{sections} at offset 4; must be 1 to {MAX_SECTIONS} and inside {len(data)} B"
        )
    if gaussians > limits.max_gaussians:
        raise BadInput("header.splat_count", f"{gaussians} at offset 16; the limit is {limits.max_gaussians}")
    if mode >= len(MODES):
        raise BadInput("header.compression_level", f"{mode} at offset 20; must be 0, 1 or 2")
    low, high = low or -DEFAULT_HARMONICS, high or DEFAULT_HARMONICS
    if not -1e6 <= low <= high <= 1e6:  # also refuses NaN
        raise BadInput("header.min_sh_coeff", f"range {low:g} to {high:g} at offset 36 is no range")
    return Header(sections, gaussians, mode, (low, high))


def _read_sections(data: bytes, header: Header) -> list[Section]:
    sections, offset, total = [], HEADER_BYTES + header.sections * SECTION_BYTES, 0
    for number in range(header.sections):
        section = _section(data, number, header.mode, offset)
        sections.append(section)
        offset, total = section.end, total + section.gaussians
    if total != header.gaussians:
        raise BadInput("header.splat_count", f"{header.gaussians} at offset 16, but the sections hold {total}")
    return sections


def _section(data: bytes, number: int, mode: int, offset: int) -> Section:
    at, field = HEADER_BYTES + number * SECTION_BYTES, f"section {number}"
    gaussians, room, size, buckets, block, bucket_bytes, steps, _, full, partial, degree = _SECTION.unpack_from(
        data, at
    )
    if degree >= len(SH_COEFFICIENTS):
        raise BadInput(f"{field}.sh_degree", f"{degree} at offset {at + 40}; must be 0 to 3")
    if gaussians > room:
        raise BadInput(f"{field}.splat_count", f"{gaussians} at offset {at}, but there is room for {room}")
    section = Section(
        mode, gaussians, degree, size, full, partial, buckets, block, steps or DEFAULT_RANGE, offset, room, bucket_bytes
    )
    if section.end > len(data):
        raise BadInput(field, f"ends at offset {section.end}, but the file has {len(data)} bytes")
    if mode and gaussians:
        _check_buckets(field, at, section)
    return section


def _check_buckets(field: str, at: int, section: Section) -> None:
    if section.bucket_bytes < CENTER_BYTES:
        raise BadInput(
            f"{field}.bucket_storage_bytes", f"{section.bucket_bytes} at offset {at + 20}; must be {CENTER_BYTES}"
        )
    if section.full_buckets + section.partial_buckets > section.buckets:
        raise BadInput(
            f"{field}.bucket_count",
            f"{section.buckets} at offset {at + 12}, but {section.full_buckets} are full and "
            f"{section.partial_buckets} partly so",
        )
    if not 0 < section.block_size <= 1e9:  # also refuses NaN
        raise BadInput(f"{field}.bucket_block_size", f"{section.block_size:g} at offset {at + 16}; must be above 0")


def _decode(data: bytes, section: Section, header: Header, degree: int) -> Gaussians:
    rows = np.frombuffer(data, section.row, section.gaussians, section.rows_offset)
    means = rows["mean"].astype(np.float32)
    if section.mode:
        means = (means - section.steps) * np.float32(section.block_size / 2 / section.steps)
        means += _centers(data, section)
    sh = np.zeros((section.gaussians, SH_COEFFICIENTS[degree], 3), np.float32)
    sh[:, 0] = dc_of_bytes(rows["color"][:, :3])
    if section.degree:
        _fill_harmonics(sh, rows["sh"], section, header)
    return Gaussians(
        means,
        rows["quat"].astype(np.float32),
        rows["scale"].astype(np.float32),
        shares_of_bytes(rows["color"][:, 3]),
        sh,
    )


def _centers(data: bytes, section: Section) -> FloatArray:
    """The centre of each gaussian's bucket [gaussians, 3]: full buckets first, then those of given lengths."""
    partial = np.frombuffer(data, "<u4", section.partial_buckets, section.offset).astype(np.uint64)
    full = np.full(section.full_buckets, section.bucket_size, np.uint64)
    ends = np.concatenate([full, partial]).cumsum()
    if not len(ends) or ends[-1] < section.gaussians:
        held = int(ends[-1]) if len(ends) else 0
        raise BadInput(
            "partly filled buckets",
            f"lengths at offset {section.offset} make room for {held} gaussians of {section.gaussians}",
        )
    row = np.dtype([("center", "<f4", 3), ("rest", "u1", section.bucket_bytes - CENTER_BYTES)])
    centers = np.frombuffer(data, row, section.buckets, section.centers_offset)["center"]
    index = np.searchsorted(ends, np.arange(section.gaussians, dtype=np.uint64), side="right")
    chosen: FloatArray = centers[index]
    return chosen


def _fill_harmonics(sh: FloatArray, stored: npt.NDArray[np.generic], section: Section, header: Header) -> None:
    """Writes into `sh` [gaussians, coefficients, 3]; each degree is stored red first, then green, then blue."""
    values = stored.astype(np.float32)
    if section.mode == 2:
        low, high = header.harmonics
        values = np.float32(low) + values * np.float32((high - low) / 255)
    start = 0
    for degree in range(1, section.degree + 1):
        width = 2 * degree + 1
        band = values[:, start : start + 3 * width].reshape(-1, 3, width)
        sh[:, degree * degree : degree * degree + width] = band.transpose(0, 2, 1)
        start += 3 * width
