"""95 % intervals of shares."""

import math

from scipy.stats import beta

Z = 1.959964
ALPHA = 0.05


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Wilson's score interval: right in the middle, and good enough to draw; (0, 1) for no observation."""
    if total == 0:
        return 0.0, 1.0
    share, spread = hits / total, Z * Z / total
    centre = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def clopper_pearson(hits: int, total: int) -> tuple[float, float]:
    """The exact interval, never too short: for claims about rare misses. (0, 1) for no observation."""
    low = 0.0 if hits == 0 else float(beta.ppf(ALPHA / 2, hits, total - hits + 1))
    high = 1.0 if hits == total else float(beta.ppf(1 - ALPHA / 2, hits + 1, total - hits))
    return low, high
