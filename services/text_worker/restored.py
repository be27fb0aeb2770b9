"""What of a sequence's next tokens needs no computing, because another worker did it. Pure: it only looks."""

from headway.prefix import BLOCK_TOKENS
from services.text_worker.kv.pages import Numbers
from services.text_worker.sequence import Sequence


def next_block(work: Sequence, start: int) -> bytes | None:
    """The name of the whole block that begins at token `start`; None where there is none, or no token behind it.

    The last token is always run, because its logits are wanted.
    """
    place, inside = divmod(start, BLOCK_TOKENS)
    if inside or place >= (len(work.tokens) - 1) // BLOCK_TOKENS:
        return None
    return work.kv.chain.over(work.tokens)[place]


def restored_blocks(work: Sequence, start: int, most_tokens: int) -> tuple[Numbers, ...]:
    """The contents of the blocks from token `start` on that have come; at most so many tokens, but always one block."""
    if work.coming is None or most_tokens <= 0 or next_block(work, start) is None:
        return ()
    first, end = start // BLOCK_TOKENS, (len(work.tokens) - 1) // BLOCK_TOKENS
    most = max(1, most_tokens // BLOCK_TOKENS)
    return work.coming.here(work.kv.chain.over(work.tokens)[first : min(end, first + most)])
