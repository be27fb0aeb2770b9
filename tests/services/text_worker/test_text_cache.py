"""The KV cache as callers meet it: beginnings are shared, and one that is too small for all changes no token."""

import asyncio
from pathlib import Path

from text_rig import ask, served

from headway.prefix import BLOCK_TOKENS
from headway.v1 import text_pb2, worker_pb2, worker_pb2_grpc


def tokens(*ids: int) -> text_pb2.TokenIds:
    return text_pb2.TokenIds(ids=ids)


async def test_a_prompt_that_begins_like_another_is_not_computed_again(tmp_path: Path) -> None:
    async with served(tmp_path, weights="int8") as channel:
        first = await ask(channel, tokens=tokens(*range(10, 110)), max_tokens=8)
        again = await ask(channel, tokens=tokens(*range(10, 110)), max_tokens=8)
        other = await ask(channel, tokens=tokens(9, *range(11, 110)), max_tokens=8)
    assert first.summary.served.cached_tokens == 0
    assert again.summary.served.cached_tokens == 100 // BLOCK_TOKENS * BLOCK_TOKENS
    assert other.summary.served.cached_tokens == 0
    assert again.token_ids == first.token_ids


async def test_a_prompt_that_is_cached_whole_still_gives_its_first_token(tmp_path: Path) -> None:
    async with served(tmp_path, weights="int8") as channel:
        first = await ask(channel, tokens=tokens(*range(10, 10 + 2 * BLOCK_TOKENS)), max_tokens=8)
        again = await ask(channel, tokens=tokens(*range(10, 10 + 2 * BLOCK_TOKENS)), max_tokens=8)
    assert again.summary.served.cached_tokens == 2 * BLOCK_TOKENS - 1
    assert again.token_ids == first.token_ids


async def test_a_cache_that_is_too_small_for_all_changes_no_token_and_is_free_at_the_end(tmp_path: Path) -> None:
    prompts = [tokens(*range(10 + 7 * i, 70 + 7 * i)) for i in range(6)]
    async with served(tmp_path, weights="int8", kv_memory_mb=1, max_deadline_s=600) as channel:
        alone = [(await ask(channel, 500.0, tokens=prompt, max_tokens=100)).token_ids for prompt in prompts]
        together = await asyncio.gather(*(ask(channel, 500.0, tokens=prompt, max_tokens=100) for prompt in prompts))
        async for state in worker_pb2_grpc.WorkerStub(channel).Watch(worker_pb2.WatchWorkerRequest(), timeout=20):
            if not state.in_flight:
                break
    assert [answer.token_ids for answer in together] == alone
    assert state.total_kv_blocks < 6 * (160 // BLOCK_TOKENS)
    assert state.free_kv_blocks == state.total_kv_blocks
    assert state.HasField("kept_kv_ms")
