"""Attention without the score matrix."""

from kernels.flash_attention.op import flash_attention

__all__ = ["flash_attention"]
