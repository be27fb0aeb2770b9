"""From what files store (log scales, logit opacities) to what the renderer draws."""

import numpy as np

from services.splat_worker.scene import FloatArray, Gaussians


def activate(
    means: FloatArray, quats: FloatArray, log_scales: FloatArray, logits: FloatArray, sh: FloatArray
) -> Gaussians:
    """exp(scale) and sigmoid(opacity); what overflows becomes infinite and is dropped by the scene's
    checks."""
    with np.errstate(over="ignore", invalid="ignore"):
        scales = np.exp(log_scales, dtype=np.float32)
        opacities = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return Gaussians(means, quats, scales, opacities, sh)
