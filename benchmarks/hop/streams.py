"""Many streams at once over one client, each checked token by token."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.hop.paced import PROMPT, word
from headway.client import AsyncHeadway
from headway.requests import text_request

DEADLINE_S = 120.0


@dataclass(frozen=True, slots=True)
class Stream:
    """One whole answer. Times in s from the call."""

    first_token_s: float
    took_s: float
    messages: int


class Wrong(RuntimeError):
    """An answer is not what the server sent."""


async def stream(client: AsyncHeadway, tokens: int, prompt: str = PROMPT) -> Stream:
    """Asks for so many tokens and reads them all. Raises `Wrong`, and the HeadwayError that ended it."""
    request, text, first_s, messages = text_request(prompt, max_tokens=tokens), "", None, 0
    began_s = time.perf_counter()
    async for message in client.text(request, deadline_s=DEADLINE_S):
        messages += 1
        if message.HasField("chunk"):
            first_s = first_s or time.perf_counter()
            text += message.chunk.text
    ended_s = time.perf_counter()
    if first_s is None or text != "".join(map(word, range(tokens))):
        raise Wrong(f"{text!r:.200} is not the answer of {tokens} tokens")
    return Stream(first_s - began_s, ended_s - began_s, messages)


async def together(
    client: AsyncHeadway, count: int, tokens: int, within_s: float, prompt: str = PROMPT
) -> Sequence[Stream]:
    """So many streams, begun one after another within so long: whole paces, so that their tokens spread over each."""

    async def later(wait_s: float) -> Stream:
        await asyncio.sleep(wait_s)
        return await stream(client, tokens, prompt)

    async with asyncio.TaskGroup() as tasks:
        begun = [tasks.create_task(later(within_s * number / count)) for number in range(count)]
    return [task.result() for task in begun]
