"""The memory of a CPU's KV cache: blocks of `BLOCK_TOKENS` tokens of every layer, sized once at start."""

import numpy as np
import numpy.typing as npt

from headway.prefix import BLOCK_TOKENS
from services.text_worker.model.architecture import Architecture
from services.text_worker.model.config import CheckpointError

Float = npt.NDArray[np.float32]


class Pages:
    """Keys and values of `blocks` blocks, fp32; never grows. A block keeps what its last holder wrote."""

    def __init__(self, architecture: Architecture, blocks: int) -> None:
        """Raises CheckpointError when the memory is not there."""
        layers, kv_heads, head_dim = len(architecture.layers), architecture.kv_heads, architecture.head_dim
        self.blocks = blocks
        try:
            # Keys lie as [head_dim, tokens]: one query's scores of a block are then one vector; see cpu/attention.py.
            self.keys = [np.zeros((blocks, kv_heads, head_dim, BLOCK_TOKENS), np.float32) for _ in range(layers)]
            self.values = [np.zeros((blocks, kv_heads, BLOCK_TOKENS, head_dim), np.float32) for _ in range(layers)]
        except MemoryError as error:
            raise CheckpointError(f"kv_memory_mb: no memory for {blocks} blocks of {BLOCK_TOKENS} tokens") from error

    @property
    def size_bytes(self) -> int:
        """Keys and values of all layers."""
        return sum(array.nbytes for array in (*self.keys, *self.values))

    def copy(self, source: int, target: int) -> None:
        """Makes block `target` hold what `source` holds."""
        for array in (*self.keys, *self.values):
            array[target] = array[source]

    def read(self, block: int) -> Float:
        """A block's content: fp32 [2, layers, kv_heads, BLOCK_TOKENS, head_dim], keys first."""
        keys = [layer[block].transpose(0, 2, 1) for layer in self.keys]
        return np.stack([np.stack(keys), np.stack([layer[block] for layer in self.values])])

    def write(self, block: int, content: Float) -> None:
        """The reverse of `read`."""
        for layer, (keys, values) in enumerate(zip(*content, strict=True)):
            self.keys[layer][block] = keys.transpose(0, 2, 1)
            self.values[layer][block] = values


def block_bytes(architecture: Architecture, element_bytes: int = 4) -> int:
    """Bytes of one block's keys and values over all layers."""
    return 2 * element_bytes * len(architecture.layers) * architecture.kv_heads * architecture.head_dim * BLOCK_TOKENS


def blocks_for(architecture: Architecture, memory_mb: int, context_tokens: int, element_bytes: int = 4) -> int:
    """How many blocks a budget of `memory_mb` MiB holds; at least one sequence of the whole context must fit.

    Raises CheckpointError naming the least budget.
    """
    blocks = memory_mb * 2**20 // block_bytes(architecture, element_bytes)
    least = -(-context_tokens // BLOCK_TOKENS) + 2  # one to copy into when the last is shared, one to measure on
    if blocks < least:
        needed_mb = -(-least * block_bytes(architecture, element_bytes) // 2**20)
        raise CheckpointError(
            f"kv_memory_mb: {memory_mb} hold {blocks} blocks; a context of {context_tokens} tokens needs {needed_mb}"
        )
    return int(blocks)
