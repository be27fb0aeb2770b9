"""Attention and its tangent in one pass, with gradients through both."""

from kernels.flash_attention_jvp.op import flash_attention_jvp

__all__ = ["flash_attention_jvp"]
