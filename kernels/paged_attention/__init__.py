"""Attention over a paged key-value cache: decode and chunked prefill."""

from kernels.paged_attention.batch import PagedBatch
from kernels.paged_attention.op import paged_attention

__all__ = ["PagedBatch", "paged_attention"]
