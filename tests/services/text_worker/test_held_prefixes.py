"""What a worker tells of its cache: exactly the noted blocks that are there, however they came and went."""

import random
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from headway.prefix import BLOCK_TOKENS, CHUNK_BYTES, canonical_text, chunk_chain
from headway.prompts import MOST_PROMPT_BYTES, canonical_prompt, prompt_chunks
from headway.v1 import prefix_cache_pb2, text_pb2
from services.text_worker.kv.chain import Chain
from services.text_worker.kv.pool import EVENTS_KEPT, BlockPool
from services.text_worker.prefixes import MOST_WAITING, HeldPrefixes, ends_of

MODEL = b"m" * 32


class Cache:
    """A pool over which prompts run as the engine runs them, and the blocks and chunks of each."""

    def __init__(self, blocks: int) -> None:
        self.pool = BlockPool(blocks)
        self.held = HeldPrefixes(self.pool)
        self.told: dict[bytes, set[bytes]] = {}

    def note(self, prompt: bytes) -> list[bytes]:
        """A byte is a token here, so that chunks end exactly where blocks do."""
        chunks = chunk_chain(prompt, salt="", fingerprint=MODEL)
        blocks = list(Chain("", MODEL).over(prompt))
        self.held.note(len(prompt), len(prompt), chunks, blocks)
        return blocks

    def run(self, prompt: bytes) -> None:
        named = self.note(prompt)
        found = list(self.pool.match(named))
        self.pool.hold(found)
        taken = self.pool.take(len(named) - len(found))
        for block, name in zip([*found, *taken], named, strict=True):
            self.pool.store(block, name)
        self.pool.release([*found, *taken])

    def follow(self, events: Iterable[prefix_cache_pb2.PrefixEvent]) -> None:
        for event in events:
            if event.removed:
                self.told.pop(event.token_chain, None)  # it may have come and gone since the last look
            else:
                self.told[event.token_chain] = set(event.chunk_chain)

    def known(self, prompt: bytes) -> int:
        """Leading chunks of a prompt that one who was told knows of."""
        chunks = set().union(*self.told.values())
        links = chunk_chain(prompt, salt="", fingerprint=MODEL)
        return next((place for place, link in enumerate(links) if link not in chunks), len(links))

    def cached(self, prompt: bytes) -> int:
        """Leading chunks of a prompt that are in the pool."""
        return len(self.pool.match(Chain("", MODEL).over(prompt))) * BLOCK_TOKENS // CHUNK_BYTES


def prompt_of(parts: list[int]) -> bytes:
    return b"".join(random.Random(part).randbytes(CHUNK_BYTES) for part in parts)


prompts = st.lists(st.integers(0, 2), min_size=1, max_size=4).map(prompt_of)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(prompts, st.booleans()), min_size=1, max_size=12), prompts)
def test_routers_know_what_the_cache_holds(steps: list[tuple[bytes, bool]], asked: bytes) -> None:
    cache = Cache(blocks=44)  # five prompts' worth of blocks at most
    for prompt, look in steps:
        cache.run(prompt)
        if look:
            cache.follow(cache.held.changes())
    cache.follow(cache.held.changes())
    for prompt in (asked, *(prompt for prompt, _ in steps)):
        assert cache.known(prompt) == cache.cached(prompt)
    assert {event.token_chain for event in cache.held.whole()} == cache.told.keys()
    assert cache.held.changes() == []


def test_what_the_cache_lets_go_is_told_and_told_again_when_it_comes_back() -> None:
    cache, prompt = Cache(blocks=8), prompt_of([1])
    cache.run(prompt)
    cache.follow(cache.held.changes())
    assert cache.known(prompt) == 1
    others = cache.pool.take(8)
    cache.follow(cache.held.changes())
    assert (cache.known(prompt), cache.told) == (0, {})
    cache.pool.release(others)
    for block, name in zip(cache.pool.take(8), Chain("", MODEL).over(prompt), strict=True):  # noted long ago
        cache.pool.store(block, name)
    cache.follow(cache.held.changes())
    assert cache.known(prompt) == 1


def test_who_missed_too_many_events_still_ends_with_the_truth() -> None:
    cache, kept = Cache(blocks=24), prompt_of([1])
    cache.run(prompt_of([2]))
    cache.follow(cache.held.changes())
    cache.note(kept)
    for number in range(EVENTS_KEPT // 4):
        cache.run(prompt_of([2 + number % 7]))
    cache.run(kept)
    assert cache.pool.events_after(8) is None
    cache.follow(cache.held.changes())
    assert cache.known(kept) == 1
    assert cache.known(prompt_of([2])) == cache.cached(prompt_of([2]))


def test_a_prompt_of_other_bytes_but_equal_tokens_is_known_too() -> None:
    cache, prompt = Cache(blocks=8), prompt_of([1])
    cache.run(prompt)
    cache.follow(cache.held.changes())
    spelled = chunk_chain(canonical_text("a" * CHUNK_BYTES), salt="", fingerprint=MODEL)
    cache.held.note(CHUNK_BYTES, len(prompt), spelled, list(Chain("", MODEL).over(prompt)))
    cache.follow(cache.held.changes())
    assert set(spelled) < set().union(*cache.told.values())
    assert cache.known(prompt) == 1


def test_prompts_that_are_never_computed_are_forgotten() -> None:
    held = HeldPrefixes(BlockPool(1))
    for number in range(MOST_WAITING + 10):
        name = number.to_bytes(32, "big")
        held.note(CHUNK_BYTES, BLOCK_TOKENS, [name], [name])
    assert len(held._waiting) == MOST_WAITING
    assert held.changes() == []


@given(st.integers(1, 20_000), st.integers(1, 5_000))
def test_chunks_end_in_order_and_within_the_prompt(size: int, tokens: int) -> None:
    ends = list(ends_of(size, tokens))
    assert len(ends) == size // CHUNK_BYTES
    assert ends == sorted(ends)
    assert all(count * BLOCK_TOKENS <= tokens for count in ends)


text = st.text("ab\x1b\x1e\x1fä", max_size=600)


@settings(max_examples=60, deadline=None)
@given(text, st.lists(st.tuples(st.sampled_from(["user", "system"]), text), max_size=4), st.integers(0, 700))
def test_a_bounded_look_sees_how_the_whole_begins(prompt: str, turns: list[tuple[str, str]], most: int) -> None:
    chat = text_pb2.Chat(messages=[text_pb2.ChatMessage(role=role, content=content) for role, content in turns])
    for request in (
        text_pb2.GenerateRequest(text=prompt),
        text_pb2.GenerateRequest(chat=chat),
        text_pb2.GenerateRequest(tokens=text_pb2.TokenIds(ids=prompt.encode())),
        text_pb2.GenerateRequest(),
    ):
        whole, begun = canonical_prompt(request), canonical_prompt(request, most)
        assert len(begun) <= most
        assert whole.startswith(begun[: most // 4 * 4])
        assert len(begun) >= min(len(whole), most // 4 * 4)


def test_tenants_of_a_mesh_with_a_secret_share_no_chunk() -> None:
    canonical = b"T" + b"a" * 600

    def chunks(tenant: str, secret: bytes | None, model: str = "m") -> list[bytes]:
        return list(prompt_chunks(canonical, asset_hash=model, secret=secret, tenant=tenant))

    assert len(chunks("a", None)) == 2
    assert chunks("a", None) == chunks("b", None)
    secret = b"s" * 32
    variants = [chunks("a", None), chunks("a", secret), chunks("b", secret), chunks("a", None, "other")]
    assert len({link for variant in variants for link in variant}) == 8
    long = list(prompt_chunks(b"x" * (MOST_PROMPT_BYTES + 4096), asset_hash="m", secret=None, tenant=""))
    assert len(long) == MOST_PROMPT_BYTES // CHUNK_BYTES
