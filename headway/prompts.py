"""How a prompt begins, as router and workers both see it before it is tokenised (DESIGN, decision 10).

A worker names what it caches by tokens; a router has no tokenizer. Both know the canonical bytes of the request, so the
worker tells for the blocks of tokens that it holds which chunks of those bytes end in them.
"""

import sys
from collections.abc import Iterator, Sequence

from headway.prefix import TOKEN_BYTES, canonical_messages, canonical_text, canonical_tokens, chunk_links, tenant_salt
from headway.v1 import text_pb2

MOST_PROMPT_BYTES = 1 << 18
"""Prompts are told apart by no more than that, whatever their length."""
MOST_PICKED_BYTES = 1 << 16
"""Of these as many are told with a `Pick`: a client sends them there and then again to the worker."""
TOKENS_MARK = b"I"
MARKS = (b"T", b"M", TOKENS_MARK)
"""How a canonical prompt begins: see `headway.prefix`."""


def canonical_prompt(request: text_pb2.GenerateRequest, most_bytes: int = sys.maxsize) -> bytes:
    """The first `most_bytes` of the canonical prompt; empty where the request has none. Looks at no more than that."""
    match request.WhichOneof("prompt"):
        case "tokens":
            canonical = canonical_tokens(request.tokens.ids[: most_bytes // TOKEN_BYTES])
        case "chat":
            canonical = canonical_messages(_first(request.chat.messages, most_bytes))
        case "text":
            canonical = canonical_text(request.text[:most_bytes])
        case _:
            canonical = b""
    return canonical[:most_bytes]


def prompt_chunks(canonical: bytes, *, asset_hash: str, secret: bytes | None, tenant: str) -> Iterator[bytes]:
    """The hashes of a canonical prompt's full chunks for one model, made as they are asked for; 32 bytes each.

    They are salted by tenant in a mesh with a secret, where workers learn the tenant from the router. Without one there
    is one salt for all: workers do not know whose call it is, either.
    """
    salt = "" if secret is None else tenant_salt(secret, f"prompts of {tenant}")
    return chunk_links(canonical[:MOST_PROMPT_BYTES], salt=salt, fingerprint=asset_hash.encode())


def _first(messages: Sequence[text_pb2.ChatMessage], most_bytes: int) -> Iterator[tuple[str, str]]:
    left = most_bytes
    for message in messages:
        yield message.role[:left], message.content[:left]
        left -= len(message.role) + len(message.content) + 2
        if left <= 0:
            return
