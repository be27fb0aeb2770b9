"""Gaussians in .splat: records of 32 bytes without a header (antimatter15/splat).

Position and linear scales as float32, colour and opacity as 8 bits, then the rotation as 8 bits for each of w, x, y, z.
"""

from pathlib import Path

import numpy as np

from headway.errors import BadInput
from services.splat_worker.readers.activations import dc_of_bytes, shares_of_bytes
from services.splat_worker.scene import Gaussians, SceneLimits

RECORD = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("quat", "u1", 4)])


def read_splat(path: Path, limits: SceneLimits) -> Gaussians:
    """Raises BadInput naming the byte offset; nothing else in such a file can be told from a scene."""
    size = path.stat().st_size
    count, rest = divmod(size, RECORD.itemsize)
    if rest or not count:
        raise BadInput("file", f"{size} bytes; {rest} are left over at offset {size - rest}: records have 32 each")
    if count > limits.max_gaussians:
        raise BadInput("file", f"{count} records; the limit is {limits.max_gaussians}")
    rows = np.fromfile(path, dtype=RECORD, count=count)
    if len(rows) != count:
        raise BadInput("file", f"ended at offset {rows.nbytes} while it was read; it had {size} bytes")
    return Gaussians(
        means=rows["mean"],
        quats=(rows["quat"].astype(np.float32) - 128) / np.float32(128),
        scales=rows["scale"],
        opacities=shares_of_bytes(rows["color"][:, 3]),
        sh=dc_of_bytes(rows["color"][:, None, :3]),
    )
