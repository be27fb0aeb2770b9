from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.prefix import (
    HEADER_BYTES,
    ElementType,
    PayloadError,
    PayloadHeader,
    canonical_messages,
    canonical_text,
    chunk_chain,
    model_fingerprint,
    pack_header,
    tenant_salt,
    token_chain,
    unpack,
)

SALT, MODEL = "a" * 64, b"m" * 32
tokens = st.lists(st.integers(0, 2**32 - 1), max_size=40)
conversations = st.lists(
    st.tuples(st.sampled_from(["user", "system"]), st.text("a\x1b\x1e\x1feur", max_size=6)), max_size=4
)


def _shared(first: tuple[bytes, ...], second: tuple[bytes, ...]) -> int:
    return len([None for a, b in zip(first, second, strict=False) if a == b])


def _common(first: list[int], second: list[int]) -> int:
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count


@settings(max_examples=60, deadline=None)
@given(tokens, st.integers(0, 10))
def test_a_chain_goes_on_where_it_was_left(line: list[int], blocks: int) -> None:
    whole = token_chain(line, salt=SALT, fingerprint=MODEL, block_tokens=4)
    blocks = min(blocks, len(whole))
    begun = token_chain(line[: 4 * blocks], salt=SALT, fingerprint=MODEL, block_tokens=4)
    after = begun[-1] if begun else None
    rest = token_chain(line[4 * blocks :], salt=SALT, fingerprint=MODEL, block_tokens=4, after=after)
    assert begun + rest == whole


@settings(max_examples=150, deadline=None)
@given(tokens, tokens, tokens)
def test_blocks_are_shared_exactly_as_far_as_the_beginnings_agree(head: list[int], a: list[int], b: list[int]) -> None:
    first, second = (token_chain(head + tail, salt=SALT, fingerprint=MODEL, block_tokens=4) for tail in (a, b))
    assert _shared(first, second) == _common(head + a, head + b) // 4
    assert len(first) == len(head + a) // 4
    assert all(len(link) == 32 for link in first)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=700), st.binary(max_size=700))
def test_chunks_are_shared_exactly_as_far_as_the_bytes_agree(head: bytes, tail: bytes) -> None:
    first = chunk_chain(head, salt=SALT, fingerprint=MODEL)
    second = chunk_chain(head + tail, salt=SALT, fingerprint=MODEL)
    assert len(first) == len(head) // 256
    assert second[: len(first)] == first


def test_tenants_models_block_sizes_and_chains_share_nothing() -> None:
    same = list(range(8))
    chains = [
        token_chain(same, salt=SALT, fingerprint=MODEL, block_tokens=4),
        token_chain(same, salt="b" * 64, fingerprint=MODEL, block_tokens=4),
        token_chain(same, salt=SALT, fingerprint=b"n" * 32, block_tokens=4),
        token_chain(same, salt=SALT, fingerprint=MODEL, block_tokens=8),
        chunk_chain(b"\0" * 256, salt=SALT, fingerprint=MODEL),
        chunk_chain(b"\0" * 256, salt="b" * 64, fingerprint=MODEL),
    ]
    links = [link for chain in chains for link in chain]
    assert len(set(links)) == len(links) == 9


def test_the_chain_is_what_other_versions_will_compute() -> None:
    (link,) = token_chain(range(32), salt=SALT, fingerprint=MODEL)
    assert link.hex() == "4776c50934d40f65d2b291f10244ad56cd99df6d653be08f3646b3385eafe30e"


@pytest.mark.parametrize("token", [-1, 2**32, 1.5])
def test_a_token_out_of_range_is_refused(token: int) -> None:
    with pytest.raises(ValueError, match="not a number of 0"):
        token_chain([token] * 32, salt=SALT, fingerprint=MODEL)


@settings(max_examples=200, deadline=None)
@given(conversations, conversations)
def test_equal_canonical_bytes_mean_equal_conversations(a: list[tuple[str, str]], b: list[tuple[str, str]]) -> None:
    assert (canonical_messages(a) == canonical_messages(b)) == (a == b)


@settings(max_examples=60, deadline=None)
@given(conversations, conversations, st.text(max_size=4))
def test_a_conversation_that_goes_on_keeps_its_beginning(
    before: list[tuple[str, str]], after: list[tuple[str, str]], more: str
) -> None:
    assert canonical_messages(before + after).startswith(canonical_messages(before))
    if before:
        longer = [*before[:-1], (before[-1][0], before[-1][1] + more)]
        assert canonical_messages(longer).startswith(canonical_messages(before)[:-1])
    assert canonical_text("ab").startswith(canonical_text("a"))
    assert not canonical_messages(before).startswith(canonical_text("")[:1])


def test_a_salt_is_the_secrets_and_the_tenants_own() -> None:
    secret = b"s" * 16
    assert tenant_salt(secret, "a") == tenant_salt(secret, "a")
    assert len({tenant_salt(secret, "a"), tenant_salt(secret, "b"), tenant_salt(b"t" * 16, "a")}) == 3
    with pytest.raises(ValueError, match="at least 16"):
        tenant_salt(b"short", "a")


def test_a_fingerprint_covers_names_bytes_and_traits(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    whole = model_fingerprint([first, second], {"dtype": "fp16"})
    assert model_fingerprint([second, first], {"dtype": "fp16"}) == whole
    others = {
        whole,
        model_fingerprint([first], {"dtype": "fp16"}),
        model_fingerprint([first, second], {"dtype": "fp32"}),
    }
    second.write_bytes(b"3")
    assert len(others | {model_fingerprint([first, second], {"dtype": "fp16"})}) == 4


def _header(element: ElementType = ElementType.FLOAT16, tokens: int = 4) -> PayloadHeader:
    return PayloadHeader(b"b" * 32, MODEL, element, layers=2, kv_heads=3, tokens=tokens, head_dim=5)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ElementType), st.integers(0, 5), st.randoms(use_true_random=False))
def test_a_payload_comes_back_and_any_change_is_found(element: ElementType, count: int, random: object) -> None:
    header = _header(element, count)
    payload = random.randbytes(header.payload_bytes)
    stored = pack_header(header, payload) + payload
    assert unpack(stored, block=b"b" * 32, fingerprint=MODEL) == (header, payload)
    at = random.randrange(len(stored))
    damaged = stored[:at] + bytes([stored[at] ^ (1 << random.randrange(8))]) + stored[at + 1 :]
    for wrong in (damaged, stored[:at], stored + b"\0"):
        with pytest.raises(PayloadError):
            unpack(wrong, block=b"b" * 32, fingerprint=MODEL)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_garbage_is_no_payload(garbage: bytes, with_magic: bool) -> None:
    with pytest.raises(PayloadError):
        unpack(b"HWKV\x01\0" * with_magic + garbage, block=b"b" * 32, fingerprint=MODEL)


def test_a_payload_of_another_block_or_model_is_refused() -> None:
    header = _header()
    stored = pack_header(header, bytes(header.payload_bytes)) + bytes(header.payload_bytes)
    for block, model in ((b"c" * 32, MODEL), (b"b" * 32, b"n" * 32)):
        with pytest.raises(PayloadError, match="another"):
            unpack(stored, block=block, fingerprint=model)


def test_what_does_not_fit_is_not_packed() -> None:
    with pytest.raises(PayloadError, match="header says"):
        pack_header(_header(), b"1")
    large = PayloadHeader(b"b" * 32, MODEL, ElementType.FLOAT32, layers=64, kv_heads=8, tokens=32, head_dim=128)
    with pytest.raises(PayloadError, match=f"at most {2 << 20}"):
        pack_header(large, bytes(large.payload_bytes))
    with pytest.raises(PayloadError, match="0 to 65535"):
        pack_header(PayloadHeader(b"b" * 32, MODEL, ElementType.FLOAT16, 70_000, 0, 1, 1), b"")
    with pytest.raises(PayloadError, match="32 bytes"):
        pack_header(PayloadHeader(b"b", MODEL, ElementType.FLOAT16, 0, 0, 0, 0), b"")
    assert HEADER_BYTES == 88
