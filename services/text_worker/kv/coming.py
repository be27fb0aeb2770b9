"""Blocks of a prompt's beginning that another worker computed, on their way into this one's cache."""

from collections.abc import Sequence as Several
from itertools import takewhile

from services.text_worker.kv.pages import Numbers


class Coming:
    """Written by the event loop and read by the engine's thread: each change is one step of the interpreter."""

    def __init__(self, hashes: Several[bytes], until_s: float) -> None:
        """`hashes`: the blocks wanted, in the prompt's order. `until_s`: the end of waiting for them; monotonic."""
        self.hashes, self.until_s = tuple(hashes), until_s
        self._expected = frozenset(hashes)
        self._content: dict[bytes, Numbers] = {}

    def expect(self, hashes: Several[bytes]) -> None:
        """Only these are there, it turns out."""
        self._expected = frozenset(hashes)

    def bring(self, block: bytes, content: Numbers) -> None:
        """One is here: [2, layers, kv_heads, BLOCK_TOKENS, head_dim], checked."""
        self._content[block] = content

    def end(self) -> None:
        """Nothing more will come."""
        self._expected = frozenset()

    def awaits(self, block: bytes, now_s: float) -> bool:
        """Whether it is worth waiting for: still under way, and in time."""
        return now_s < self.until_s and block in self._expected and block not in self._content

    def here(self, chain: Several[bytes]) -> tuple[Numbers, ...]:
        """The content of the longest beginning of `chain` that has come."""
        found = takewhile(lambda content: content is not None, map(self._content.get, chain))
        return tuple(content for content in found if content is not None)
