"""The memory of a GPU's KV cache: blocks of `BLOCK_TOKENS` tokens of every layer, sized once at start."""

import torch

from headway.prefix import BLOCK_TOKENS
from services.text_worker.model.architecture import Architecture
from services.text_worker.model.config import CheckpointError


class CudaPages:
    """See `backend.Blocks`. Keys and values as `kernels.paged_attention` reads them."""

    def __init__(self, architecture: Architecture, blocks: int, dtype: torch.dtype, device: torch.device) -> None:
        """Raises CheckpointError when the memory is not there."""
        self.blocks = blocks
        shape = (len(architecture.layers), blocks, BLOCK_TOKENS, architecture.kv_heads, architecture.head_dim)
        try:
            self.keys = torch.zeros(shape, dtype=dtype, device=device)
            self.values = torch.zeros(shape, dtype=dtype, device=device)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise CheckpointError(f"kv_memory_mb: no memory for {blocks} blocks of {BLOCK_TOKENS} tokens") from error

    @property
    def size_bytes(self) -> int:
        """Keys and values of all layers."""
        return self.keys.nbytes + self.values.nbytes

    def copy(self, source: int, target: int) -> None:
        """Makes block `target` hold what `source` holds."""
        self.keys[:, target] = self.keys[:, source]
        self.values[:, target] = self.values[:, source]
