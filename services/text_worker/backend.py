"""What the engine needs of that which computes: `cpu` over numba's kernels, or `cuda` over those of `kernels`."""

from collections.abc import Sequence as Several
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from headway.prefix import BLOCK_TOKENS
from services.text_worker.model.architecture import Architecture


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of one sequence to run, at positions `start` and on; those before are cached in `blocks`, in order."""

    blocks: Several[int]
    start: int
    tokens: Several[int]
    wanted: int = 1
    """Logits of the last so many tokens."""

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class Blocks(Protocol):
    """The memory of a KV cache, sized once at start."""

    blocks: int

    @property
    def size_bytes(self) -> int:
        """Keys and values of all layers."""

    def copy(self, source: int, target: int) -> None:
        """Makes block `target` hold what `source` holds."""


class Model(Protocol):
    """A checkpoint ready to run. Not thread-safe over one cache: one engine thread owns it."""

    architecture: Architecture
    context: int

    @property
    def parameters(self) -> int:
        """Number of weights; a tied head is not counted again."""

    def forward(self, spans: Several[Span], pages: Any) -> Tensor:
        """Runs every span, caches its keys and values in `pages`, which are of the model's own kind.

        Returns the wanted tokens' logits on the host, fp32 [sum of wanted, vocab]; blocks until they are there. Raises
        ValueError for an empty span, one over the context, or one with too few blocks.
        """


def check_spans(spans: Several[Span], context: int) -> None:
    """See `Model.forward`."""
    for span in spans:
        if not 1 <= span.wanted <= len(span.tokens) or span.start < 0 or span.end > context:
            raise ValueError(f"span {span.start}..{span.end} is empty or over the context of {context}")
        if len(span.blocks) * BLOCK_TOKENS < span.end:
            raise ValueError(f"span {span.start}..{span.end} has only {len(span.blocks)} blocks")
