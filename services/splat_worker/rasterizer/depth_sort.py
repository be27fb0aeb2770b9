"""One global, stable sort of what can be seen, front to back."""

import numpy as np
import numpy.typing as npt

from services.splat_worker.rasterizer.compiled import compiled

_BITS = 11
_DIGITS = 1 << _BITS

Keys = npt.NDArray[np.uint32]
Slots = npt.NDArray[np.int32]


def depth_order(keys: Keys, slots: Slots, spare_keys: Keys, spare_slots: Slots) -> Slots:
    """`slots` in rising order of `keys`; equal keys keep their order.

    Depths are positive, so their float32 bits sort as unsigned integers. All four arrays [visible] are
    overwritten; the result is one of them.
    """
    for digit in range(3):
        if _radix_pass(keys, slots, spare_keys, spare_slots, digit * _BITS):
            keys, spare_keys = spare_keys, keys
            slots, spare_slots = spare_slots, slots
    return slots


@compiled()
def _radix_pass(keys: Keys, slots: Slots, out_keys: Keys, out_slots: Slots, shift: int) -> bool:
    """One stable counting pass over 11 bits; false, and nothing written, when all keys share the digit."""
    starts = np.zeros(_DIGITS, np.int64)
    mask = np.uint32(_DIGITS - 1)
    for i in range(len(keys)):
        starts[(keys[i] >> np.uint32(shift)) & mask] += 1
    total = 0
    for digit in range(_DIGITS):
        here = starts[digit]
        if here == len(keys):
            return False
        starts[digit] = total
        total += here
    for i in range(len(keys)):
        digit = (keys[i] >> np.uint32(shift)) & mask
        place = starts[digit]
        starts[digit] = place + 1
        out_keys[place] = keys[i]
        out_slots[place] = slots[i]
    return True
