"""What is on its way from another worker: who waits for it, for how long, and what is taken in. On a stepped clock."""

from dataclasses import replace

import numpy as np
from test_text_scheduler import AS_MEASURED, COSTS, PLANNING, sequence

from headway.cost import Cost
from headway.planning import plan_queue
from headway.prefix import BLOCK_TOKENS
from services.text_worker.kv.chain import Chain
from services.text_worker.kv.coming import Coming
from services.text_worker.kv.pages import Numbers
from services.text_worker.kv.pool import BlockPool
from services.text_worker.scheduler import Part, TextBatch, TextScheduler
from services.text_worker.sequence import Sequence

TAKING_IN = Cost(0.5)
CONTENT: Numbers = np.zeros(1, np.float32)
PATIENCE_S = 0.1


def scheduler(pool: BlockPool) -> TextScheduler:
    return TextScheduler(replace(COSTS, taking_in=TAKING_IN), pool, PLANNING)


def awaited(blocks: int, prompt: int, due_s: float = 10.0) -> tuple[Sequence, Coming]:
    """One whose first blocks are under way."""
    work = sequence(due_s, prompt=prompt)
    work.kv.chain = Chain("tenant", b"model")
    work.coming = Coming(work.kv.chain.over(work.tokens)[:blocks], PATIENCE_S)
    return work, work.coming


def step(works: list[Sequence], pool: BlockPool, now_s: float = 0.0) -> TextBatch | None:
    """The next one, planned as the engine's loop does."""
    decides = scheduler(pool)
    plan = plan_queue([decides.job(work, now_s) for work in works], replace(PLANNING, now_s=now_s))
    for work in works:
        work.ticket.choice = plan.get(work.ticket.key)
    return decides.next_batch(works, now_s, AS_MEASURED)


def parts(batch: TextBatch | None) -> list[tuple[int, int, int]]:
    """Start, tokens and restored blocks of each part."""
    found: tuple[Part, ...] = batch.parts if batch is not None else ()
    return [(part.start, part.count, len(part.restored)) for part in found]


def test_it_waits_for_its_blocks_while_others_run() -> None:
    pool = BlockPool(64)
    waiting, _ = awaited(3, 120)
    assert step([waiting], pool) is None
    other = sequence(held=pool, done=3)
    assert parts(step([waiting, other], pool)) == [(7, 1, 0)]


def test_what_came_is_taken_in_a_chunk_at_a_time_and_the_rest_computed() -> None:
    pool = BlockPool(64)
    work, coming = awaited(3, 120)
    for block in coming.hashes:
        coming.bring(block, CONTENT)
    batch = step([work], pool)
    assert parts(batch) == [(0, 64, 2)]  # a chunk is 64 tokens
    assert batch is not None
    assert (batch.stage, batch.predicted) == ("prefill", TAKING_IN.times(2))
    work.kv.blocks, work.kv.computed = pool.take(2), 64
    assert parts(step([work], pool)) == [(64, 32, 1)]
    work.kv.blocks, work.kv.computed = [*work.kv.blocks, *pool.take(1)], 96
    assert parts(step([work], pool)) == [(96, 24, 0)]


def test_who_waited_long_enough_computes_and_still_takes_what_comes() -> None:
    pool = BlockPool(64)
    work, coming = awaited(3, 120)
    assert parts(step([work], pool, PATIENCE_S)) == [(0, 64, 0)]
    work.kv.blocks, work.kv.computed = pool.take(2), 64
    coming.bring(coming.hashes[2], CONTENT)
    assert parts(step([work], pool, PATIENCE_S)) == [(64, 32, 1)]


def test_nobody_waits_where_that_endangers_a_promise_his_own_or_another() -> None:
    prefill_ms = COSTS.prefill_cost(120).mean_ms
    least_s = (prefill_ms + 16 * COSTS.decode.at(2).mean_ms + PLANNING.overhead_ms) / 1000
    for own_s, other_s in ((least_s + 0.01, 10.0), (10.0, least_s + 0.01)):
        pool = BlockPool(64)
        work, _ = awaited(3, 120, own_s)
        other = sequence(other_s, prompt=5, held=pool)
        assert 0 in [start for start, _, _ in parts(step([work, other], pool))]


def test_what_is_not_there_or_ends_is_not_waited_for() -> None:
    pool = BlockPool(64)
    work, coming = awaited(3, 120)
    coming.expect(coming.hashes[:1])
    assert step([work], pool) is None
    coming.bring(coming.hashes[0], CONTENT)
    assert parts(step([work], pool)) == [(0, 32, 1)]
    work.kv.blocks, work.kv.computed = pool.take(1), 32
    assert parts(step([work], pool)) == [(32, 64, 0)]
    other, gone = awaited(3, 120)
    gone.end()
    assert parts(step([other], pool)) == [(0, 64, 0)]


def test_the_last_token_of_a_prompt_is_always_run() -> None:
    pool = BlockPool(64)
    work, coming = awaited(2, 2 * BLOCK_TOKENS)
    for block in coming.hashes:
        coming.bring(block, CONTENT)
    assert parts(step([work], pool)) == [(0, 32, 1)]


def test_answers_that_begin_alike_take_in_once_and_wait_together() -> None:
    pool = BlockPool(64)
    (first, coming), (second, _) = awaited(3, 120), awaited(3, 120)
    second.coming = coming
    third = sequence(prompt=120)  # began alike, and asked for nothing
    third.kv.chain = Chain("tenant", b"model")
    assert step([first, second, third], pool) is None
    for block in coming.hashes:
        coming.bring(block, CONTENT)
    assert parts(step([first, second, third], pool)) == [(0, 64, 2)]
