"""The KV cache: one slot a sequence, sized once at start."""

import torch
from torch import Tensor

from services.text_worker.model.architecture import Architecture


class KvCache:
    """Keys and values of up to `slots` sequences of up to `context` tokens each; never grows.

    A slot keeps its last holder's content: who takes one writes from position 0 and masks what lies behind.
    """

    def __init__(
        self, architecture: Architecture, *, slots: int, context: int, dtype: torch.dtype = torch.float32
    ) -> None:
        if slots < 1 or not 1 <= context <= architecture.context:
            raise ValueError(f"slots must be at least 1 and context from 1 to {architecture.context}")
        shape = (len(architecture.layers), slots, architecture.kv_heads, context, architecture.head_dim)
        # Zeros rather than empty: masked places weigh nothing only while they are finite (0 * NaN is NaN).
        self.keys = torch.zeros(shape, dtype=dtype)  # [layers, slots, kv_heads, context, head_dim]
        self.values = torch.zeros(shape, dtype=dtype)  # [layers, slots, kv_heads, context, head_dim]
        self.slots = slots
        self.context = context
        self._free = list(range(slots - 1, -1, -1))

    @property
    def free_slots(self) -> int:
        return len(self._free)

    @property
    def size_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def acquire(self) -> int | None:
        """A free slot, or None when all are taken."""
        return self._free.pop() if self._free else None

    def release(self, slot: int) -> None:
        """Gives a slot back. Raises ValueError for one that is not taken."""
        if not 0 <= slot < self.slots or slot in self._free:
            raise ValueError(f"slot {slot} is not taken")
        self._free.append(slot)

    def write(self, layer: int, slots: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Stores a key and value a row: slots, positions [rows]; keys, values [rows, kv_heads, head_dim]."""
        self.keys[layer, slots, :, positions] = keys
        self.values[layer, slots, :, positions] = values
