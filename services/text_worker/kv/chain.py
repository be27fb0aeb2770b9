"""The hashes that name a sequence's blocks; see `headway.prefix`."""

import secrets
from collections.abc import Sequence
from itertools import count

from headway.prefix import BLOCK_TOKENS, token_chain

_SECRET, _numbers = secrets.token_hex(32), count()


class Chain:
    """Names the full blocks of one growing sequence, each hashed once."""

    def __init__(self, salt: str, fingerprint: bytes) -> None:
        """`salt` is the tenant's and `fingerprint` the model's: tenants and models never share a block."""
        self._salt, self._fingerprint = salt, fingerprint
        self._hashes: list[bytes] = []

    @classmethod
    def private(cls) -> "Chain":
        """One that agrees with no other, so that its sequence shares nothing."""
        return cls(f"{_SECRET} {next(_numbers)}", b"")

    def over(self, tokens: Sequence[int]) -> Sequence[bytes]:
        """The hashes of all full blocks of `tokens`, which are those of the last call or go on from them."""
        done = len(self._hashes)
        if len(tokens) // BLOCK_TOKENS > done:
            after = self._hashes[-1] if done else None
            rest = tokens[done * BLOCK_TOKENS :]
            self._hashes += token_chain(rest, salt=self._salt, fingerprint=self._fingerprint, after=after)
        return self._hashes
