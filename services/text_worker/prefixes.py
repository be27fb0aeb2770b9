"""Which beginnings of prompts this worker's KV cache holds, in the form that routers can match without a tokenizer.

Each full block of the cache carries the chunks of canonical bytes behind whose end it is the last. Where a chunk ends
among the tokens is taken in proportion: exact for prompts that came as tokens, near enough for text, because it decides
only where a request is placed. Belongs to the event loop; the pool's thread goes on meanwhile.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from headway.lease import Secrets, first_of
from headway.prefix import BLOCK_TOKENS, CHUNK_BYTES
from headway.prompts import canonical_prompt, prompt_chunks
from headway.v1 import prefix_cache_pb2, text_pb2
from services.text_worker.kv.chain import Chain
from services.text_worker.kv.pool import BlockPool

MOST_CHUNKS = 64
"""Of one block; different texts may make equal tokens."""
MOST_HELD = 65_536
MOST_WAITING = 16_384
"""Blocks of prompts that were not computed, or that the cache has let go."""


@dataclass(slots=True)
class _Named:
    """One block."""

    tokens: int
    """Of the prompt, up to the block's end."""
    chunks: dict[bytes, None] = field(default_factory=dict)


def ends_of(prompt_bytes: int, prompt_tokens: int) -> Iterator[int]:
    """For each full chunk of a prompt how many full blocks of tokens lie before its end."""
    for end in range(CHUNK_BYTES, prompt_bytes + 1, CHUNK_BYTES):
        yield prompt_tokens * end // prompt_bytes // BLOCK_TOKENS


class HeldPrefixes:
    """Follows the events of a pool of blocks, and says what changed of those that prompts were noted for."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._held: dict[bytes, _Named] = {}
        self._waiting: OrderedDict[bytes, _Named] = OrderedDict()
        self._changed: dict[bytes, None] = {}
        self._seen = 0

    def note(self, prompt_bytes: int, prompt_tokens: int, chunks: Sequence[bytes], blocks: Sequence[bytes]) -> None:
        """A prompt that is about to be computed: the hashes of its full chunks and of its full blocks. Mutates.

        `prompt_bytes` and `prompt_tokens` are those of the same part of the prompt.
        """
        for chunk, count in zip(chunks, ends_of(prompt_bytes, prompt_tokens), strict=False):
            if 0 < count <= len(blocks):
                self._note(blocks[count - 1], count * BLOCK_TOKENS, chunk)
        while len(self._waiting) > MOST_WAITING:
            self._waiting.popitem(last=False)

    def changes(self) -> list[prefix_cache_pb2.PrefixEvent]:
        """What was stored or removed since the last call. Mutates."""
        self._follow()
        changed, self._changed = self._changed, {}
        return [self._event(block) for block in changed]

    def whole(self) -> list[prefix_cache_pb2.PrefixEvent]:
        """All that is held; `changes` goes on from there. Mutates."""
        self.changes()
        return [self._event(block) for block in self._held]

    def _note(self, block: bytes, tokens: int, chunk: bytes) -> None:
        named = self._held.get(block) or self._waiting.get(block) or _Named(tokens)
        if chunk in named.chunks or len(named.chunks) >= MOST_CHUNKS:
            return
        named.chunks[chunk] = None
        if block in self._held:
            self._changed[block] = None
        else:
            self._waiting[block] = named
            if self._pool.match([block]):  # its tokens were computed for a prompt of other bytes
                self._stored(block)

    def _follow(self) -> None:
        if self._pool.last_event == self._seen:
            return
        events = self._pool.events_after(self._seen)
        if events is None:
            self._begin_anew()
            return
        for event in events:
            self._seen = event.number
            (self._stored if event.stored else self._removed)(event.block_hash)

    def _begin_anew(self) -> None:
        """More happened than the pool remembers. Events that come twice change nothing."""
        self._seen = self._pool.last_event
        there = set(self._pool.stored_hashes())
        for block in [block for block in self._held if block not in there]:
            self._removed(block)
        for block in [block for block in self._waiting if block in there]:
            self._stored(block)

    def _stored(self, block: bytes) -> None:
        if block in self._waiting and len(self._held) < MOST_HELD:
            self._held[block] = self._waiting.pop(block)
            self._changed[block] = None

    def _removed(self, block: bytes) -> None:
        """What a prompt said of it stays for a while: a sequence that lost its blocks computes them again."""
        if block in self._held:
            self._waiting[block] = self._held.pop(block)
            self._changed[block] = None

    def _event(self, block: bytes) -> prefix_cache_pb2.PrefixEvent:
        named = self._held.get(block)
        if named is None:
            return prefix_cache_pb2.PrefixEvent(token_chain=block, removed=True)
        return prefix_cache_pb2.PrefixEvent(token_chain=block, chunk_chain=named.chunks, tokens=named.tokens)


class NotedPrompts:
    """Notes prompts as routers will see them."""

    def __init__(self, held: HeldPrefixes, *, asset_hash: str, secrets: Secrets | None) -> None:
        """`secrets` are what routers and workers share, where they do: see `headway.prompts`."""
        self._held, self._asset_hash, self._secrets = held, asset_hash, secrets

    def note(self, request: text_pb2.GenerateRequest, tenant: str, tokens: Sequence[int], chain: Chain) -> None:
        """A prompt that is about to be admitted, with its tokens and the chain that will name its blocks."""
        canonical = canonical_prompt(request)
        secret = first_of(self._secrets)
        chunks = prompt_chunks(canonical, asset_hash=self._asset_hash, secret=secret, tenant=tenant)
        self._held.note(len(canonical), len(tokens), tuple(chunks), chain.over(tokens))
