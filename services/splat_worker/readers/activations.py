"""From what files store (log scales, logit opacities, 8-bit colours) to what the renderer draws."""

import numpy as np
import numpy.typing as npt

from services.splat_worker.scene import FloatArray, Gaussians

SH_C0 = 0.28209479177387814
"""The basis function of degree 0: 1 / (2 sqrt(pi)). A colour is 0.5 + SH_C0 times its coefficient."""


def activate(
    means: FloatArray, quats: FloatArray, log_scales: FloatArray, logits: FloatArray, sh: FloatArray
) -> Gaussians:
    """exp(scale) and sigmoid(opacity); what overflows becomes infinite and is dropped by the scene's
    checks."""
    with np.errstate(over="ignore", invalid="ignore"):
        scales = np.exp(log_scales, dtype=np.float32)
        opacities = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return Gaussians(means, quats, scales, opacities, sh)


def shares_of_bytes(values: npt.NDArray[np.uint8]) -> FloatArray:
    """0 to 1 of 0 to 255; any shape."""
    return values.astype(np.float32) / np.float32(255)


def dc_of_bytes(colors: npt.NDArray[np.uint8]) -> FloatArray:
    """Coefficients of degree 0 of 8-bit colours; any shape."""
    return (shares_of_bytes(colors) - np.float32(0.5)) / np.float32(SH_C0)
