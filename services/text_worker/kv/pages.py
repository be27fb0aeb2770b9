"""The memory of a CPU's KV cache: blocks of `BLOCK_TOKENS` tokens of every layer, sized once at start."""

from typing import Any

import numpy as np
import numpy.typing as npt

from headway.prefix import BLOCK_TOKENS, ElementType
from services.text_worker.model.architecture import Architecture
from services.text_worker.model.config import CheckpointError

Numbers = npt.NDArray[np.float32] | npt.NDArray[np.uint16]
"""Keys and values: fp32, or the bits of bf16, of which numpy knows nothing."""


class Pages:
    """Keys and values of `blocks` blocks; never grows. A block keeps what its last holder wrote.

    fp32: keys as [blocks, kv_heads, head_dim, tokens], values as [blocks, kv_heads, tokens, head_dim], so that one
    query's scores of a block are vectors of tokens. bf16: the same in pairs of neighbours of the inner length of their
    products, [blocks, kv_heads, head_dim / 2, tokens, 2] and [blocks, kv_heads, tokens / 2, head_dim, 2], which is what
    instructions for bf16 read. See cpu/attention.py.
    """

    def __init__(self, architecture: Architecture, blocks: int, element: ElementType = ElementType.FLOAT32) -> None:
        """Raises CheckpointError when the memory is not there; ValueError for 16 bits that are not bf16."""
        layers, self.kv_heads, self.head_dim = len(architecture.layers), architecture.kv_heads, architecture.head_dim
        self.blocks, self.element = blocks, element
        keys: tuple[int, ...] = (blocks, self.kv_heads, self.head_dim, BLOCK_TOKENS)
        values: tuple[int, ...] = (blocks, self.kv_heads, BLOCK_TOKENS, self.head_dim)
        if self.paired:
            keys = (blocks, self.kv_heads, self.head_dim // 2, BLOCK_TOKENS, 2)
            values = (blocks, self.kv_heads, BLOCK_TOKENS // 2, self.head_dim, 2)
        dtype = dtype_of(element)
        try:
            self.keys: list[npt.NDArray[Any]] = [np.zeros(keys, dtype) for _ in range(layers)]
            self.values: list[npt.NDArray[Any]] = [np.zeros(values, dtype) for _ in range(layers)]
        except MemoryError as error:
            raise CheckpointError(f"kv_memory_mb: no memory for {blocks} blocks of {BLOCK_TOKENS} tokens") from error

    @property
    def paired(self) -> bool:
        """Whether numbers lie as pairs: those of 16 bits do."""
        return self.element is not ElementType.FLOAT32

    @property
    def size_bytes(self) -> int:
        """Keys and values of all layers."""
        return sum(array.nbytes for array in (*self.keys, *self.values))

    def copy(self, source: int, target: int) -> None:
        """Makes block `target` hold what `source` holds."""
        for array in (*self.keys, *self.values):
            array[target] = array[source]

    def read(self, block: int) -> Numbers:
        """A block's content: [2, layers, kv_heads, BLOCK_TOKENS, head_dim] in the pages' dtype, keys first."""
        shape, pairs = (self.kv_heads, BLOCK_TOKENS, self.head_dim), self.paired
        keys = [layer[block].transpose((0, 2, 1, 3) if pairs else (0, 2, 1)).reshape(shape) for layer in self.keys]
        values = [
            layer[block].transpose((0, 1, 3, 2)).reshape(shape) if pairs else layer[block] for layer in self.values
        ]
        return np.stack([np.stack(keys), np.stack(values)])

    def write(self, block: int, content: Numbers) -> None:
        """The reverse of `read`. Raises ValueError for another dtype, which would be read as other numbers."""
        if content.dtype != dtype_of(self.element):
            raise ValueError(f"content of {content.dtype} is not what pages of {self.element.name} hold")
        kv_heads, head_dim = self.kv_heads, self.head_dim
        for layer, (keys, values) in enumerate(zip(*content, strict=True)):
            if self.paired:
                own = keys.reshape(kv_heads, BLOCK_TOKENS, head_dim // 2, 2)
                self.keys[layer][block] = own.transpose(0, 2, 1, 3)
                self.values[layer][block] = values.reshape(kv_heads, BLOCK_TOKENS // 2, 2, head_dim).transpose(
                    0, 1, 3, 2
                )
            else:
                self.keys[layer][block] = keys.transpose(0, 2, 1)
                self.values[layer][block] = values


def dtype_of(element: ElementType) -> npt.DTypeLike:
    """How numpy keeps numbers of this type. Raises ValueError for one that pages do not hold."""
    if element is ElementType.FLOAT16:
        raise ValueError("pages hold fp32 or bf16")
    return np.float32 if element is ElementType.FLOAT32 else np.uint16


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
