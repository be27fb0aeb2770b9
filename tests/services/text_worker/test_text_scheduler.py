"""What runs next: urgency, lanes, chunks, slots and ends, on a clock that is stepped by hand."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from headway.cost import Cost, StepCurve
from headway.deadline import Budget
from headway.planning import Setting, plan_queue
from headway.prefix import BLOCK_TOKENS
from headway.quality import read_wish
from headway.ticket import Ticket
from headway.v1 import common_pb2
from services.text_worker.costs import TextCosts
from services.text_worker.engine import make_room
from services.text_worker.kv.chain import Chain
from services.text_worker.kv.pages import Pages
from services.text_worker.kv.pool import BlockPool
from services.text_worker.kv.store import KvStore, blocks_of
from services.text_worker.lengths import LengthModel
from services.text_worker.model.architecture import Architecture, Attention, Layer, Mlp, Rope
from services.text_worker.options import STRETCH_TOKENS
from services.text_worker.sampling import Sampler, Sampling
from services.text_worker.scheduler import TextScheduler
from services.text_worker.sequence import LADDER, Sequence, goals_of
from services.text_worker.tokenizer import Detokenizer, StopStrings, TextTokenizer

TOKENIZER = TextTokenizer(Tokenizer(models.BPE()), frozenset(), None, 1)
COSTS = TextCosts(
    decode=StepCurve(((1, Cost(4.0)), (4, Cost(6.0)))),
    prefill=StepCurve(((8, Cost(2.0)), (64, Cost(9.0)))),
    chunk_tokens=64,
)
PLANNING = Setting(now_s=0.0, curve=COSTS.decode, max_batch=4, overhead_ms=1.0)
AS_MEASURED = Cost(1.0)
SMALL_LAYER = Layer(Attention(1, 1, 2, Rope(1e4, 2), 1.0), Mlp(2))
SMALL = Architecture("llama", 8, 2, (SMALL_LAYER,), 512, 1e-5, True, frozenset())
BEST_EFFORT = common_pb2.ServiceLevel()


def at_least(tokens: int) -> common_pb2.ServiceLevel:
    return common_pb2.ServiceLevel(at_least=common_pb2.QualityFloor(tokens=tokens))


def sequence(
    due_s: float = 10.0,
    prompt: int = 5,
    done: int = 0,
    max_tokens: int = 100,
    held: BlockPool | None = None,
    level: common_pb2.ServiceLevel = BEST_EFFORT,
) -> Sequence:
    """One that was admitted at 0; with `held`, a pool, all but its last token is computed and in blocks of it."""
    wish = read_wish(level, LADDER, common_pb2.KIND_TEXT)
    made = Sequence(
        ticket=Ticket(Budget(0.0, due_s, 0.0), wish, due_s),
        tokens=[0] * (prompt + done),
        prompt_tokens=prompt,
        max_tokens=max_tokens,
        resumed_tokens=0,
        goals=goals_of(wish, max_tokens),
        sampler=Sampler(Sampling()),
        end_ids=frozenset(),
        detokenizer=Detokenizer(TOKENIZER),
        stops=StopStrings(()),
    )
    if held is not None:
        made.kv.blocks, made.kv.computed = held.take(blocks_of(prompt + done - 1)), prompt + done - 1
    return made


def scheduler(pool: BlockPool | None = None) -> TextScheduler:
    return TextScheduler(COSTS, pool or BlockPool(64), PLANNING)


def steps(work: Sequence, now_s: float = 0.0) -> list[int]:
    return [option.load.steps_left for option in scheduler().job(work, now_s).options]


def test_goals_are_shares_of_what_was_asked_but_not_under_the_floor() -> None:
    assert [goal.tokens for goal in sequence().goals] == [100, 75, 50, 25, 16]
    assert [goal.tokens for goal in sequence(max_tokens=20).goals] == [20, 16]
    assert [goal.tokens for goal in sequence(max_tokens=3).goals] == [3]
    assert [goal.tokens for goal in sequence(level=at_least(60)).goals] == [100, 75, 60]
    exact = common_pb2.ServiceLevel(exact="25%")
    assert [goal.tokens for goal in sequence(level=exact).goals] == [25]
    assert [goal.tokens for goal in sequence(level=common_pb2.ServiceLevel(exact="floor")).goals] == [16]
    assert sequence().goals[0].rung.label == "100%"


def test_options_shrink_as_tokens_come_and_never_end_below_the_floor() -> None:
    assert steps(sequence()) == [100, 75, 50, 25, 16]
    assert steps(sequence(done=10)) == [90, 65, 40, 15, 6]
    assert steps(sequence(done=16)) == [84, 59, 34, 9, STRETCH_TOKENS, 1]
    assert steps(sequence(done=24)) == [76, 51, 26, STRETCH_TOKENS, 1]
    assert steps(sequence(done=98)) == [2, 1]
    assert steps(sequence(done=30, level=at_least(60))) == [70, 45, 30]


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 299))
@settings(max_examples=100, deadline=None)
def test_options_always_fall_in_steps_and_quality(max_tokens: int, floor: int, done: int) -> None:
    work = sequence(max_tokens=max_tokens, level=at_least(min(floor, max_tokens)), done=min(done, max_tokens - 1))
    options = scheduler().job(work, 0.0).options
    left = [option.load.steps_left for option in options]
    quality = [option.rung.quality for option in options]
    assert left == sorted(set(left), reverse=True)
    assert quality == sorted(quality, reverse=True)
    assert left[-1] >= 1
    assert work.new_tokens + left[-1] >= min(floor, max_tokens)
    assert work.new_tokens + left[0] == max_tokens


def test_a_chunk_leaves_the_rest_of_the_prompt_and_a_decode_step_one_token_less() -> None:
    pool = BlockPool(64)
    works = [sequence(held=pool), sequence(prompt=200)]
    jobs = {work.ticket.key: scheduler(pool).job(work, 0.0) for work in works}
    batch = scheduler(pool).next_batch(works, 0.0, AS_MEASURED)
    assert batch is not None
    decoded, chunked = (batch.after(jobs[work.ticket.key]).options[0].load for work in works)
    assert (decoded.steps_left, decoded.setup.mean_ms) == (99, 0.0)
    whole_ms = jobs[works[1].ticket.key].options[0].load.setup.mean_ms
    assert chunked.steps_left == 100
    assert chunked.setup.mean_ms == pytest.approx(whole_ms * (200 - 64) / 200)


def test_what_is_left_of_the_prompt_is_setup() -> None:
    job = scheduler().job(sequence(prompt=64 + 8), 0.0)
    assert job.options[0].load.setup.mean_ms == pytest.approx(9.0 + 2.0)
    assert scheduler(pool := BlockPool(64)).job(sequence(prompt=70, held=pool), 0.0).options[0].load.setup.mean_ms == 0


def test_a_shorter_deadline_plans_fewer_tokens() -> None:
    labels = []
    for due_s in (0.5, 0.35, 0.25, 0.15, 0.08):
        job = scheduler().job(sequence(due_s), 0.0)
        labels.append(plan_queue([job], PLANNING)[job.key].option.rung.label)
    assert labels == ["100%", "75%", "50%", "25%", "floor"]


def test_prefill_and_decode_share_a_step() -> None:
    pool = BlockPool(64)
    works = [sequence(held=pool, done=3), sequence(prompt=50), sequence(held=pool, done=9), sequence(prompt=40)]
    batch = scheduler(pool).next_batch(works, 0.0, AS_MEASURED)
    assert batch is not None
    assert {(works.index(part.sequence), part.count) for part in batch.parts} == {(0, 1), (2, 1), (1, 50), (3, 14)}
    assert (batch.stage, batch.items) == ("prefill", 4)
    assert batch.predicted.mean_ms == pytest.approx(COSTS.decode.at(2).mean_ms + 9.0)
    assert [part.draws for part in batch.parts] == [True, True, True, False]


def test_a_chunk_is_no_larger_than_the_tightest_decoding_sequence_bears() -> None:
    tight = sequence(due_s=0.0105, held=(pool := BlockPool(64)), done=3)
    batch = scheduler(pool).next_batch([tight, sequence(prompt=64)], 0.0, AS_MEASURED)
    assert batch is not None
    assert [part.count for part in batch.parts] == [1, 32]
    assert batch.bound_ms <= 10.5


def test_a_sequence_ends_before_the_step_that_would_make_it_late() -> None:
    pool = BlockPool(64)
    ending, going = sequence(due_s=0.104, held=pool, done=20), sequence(due_s=0.2, held=pool, done=20)
    batch = scheduler(pool).next_batch([ending, going], 0.1, AS_MEASURED)
    assert batch is not None
    assert batch.ending == (ending,)
    assert [part.sequence for part in batch.parts] == [going]
    under_floor = sequence(due_s=0.104, held=pool, done=10)
    batch = scheduler(pool).next_batch([under_floor], 0.1, AS_MEASURED)
    assert batch is not None
    assert batch.ending == ()


def test_a_step_that_only_ends_sequences_predicts_nothing() -> None:
    pool = BlockPool(64)
    batch = scheduler(pool).next_batch([sequence(due_s=0.1, held=pool, done=20)], 0.1, AS_MEASURED)
    assert batch is not None
    assert (batch.parts, batch.predicted.mean_ms) == ((), 0.0)


def test_the_more_urgent_take_the_blocks_of_the_less_urgent() -> None:
    pool = BlockPool(6)
    holders = [sequence(held=pool, prompt=20, done=3) for _ in range(6)]
    urgent = sequence(prompt=40)
    batch = scheduler(pool).next_batch([urgent, *holders], 0.0, AS_MEASURED)
    assert batch is not None
    assert [part.sequence for part in batch.parts] == [urgent, *holders[:3]]
    assert batch.evicted == (holders[5], holders[4])


def test_who_begins_alike_waits_for_the_first_and_takes_over() -> None:
    pool = BlockPool(64)
    works = [sequence(prompt=60) for _ in range(3)]
    for work in works:
        work.kv.chain = Chain("tenant", b"model")
    batch = scheduler(pool).next_batch(works, 0.0, AS_MEASURED)
    assert batch is not None
    assert [part.sequence for part in batch.parts] == [works[0]]
    blocks = pool.take(2)
    pool.store(blocks[0], works[0].kv.chain.over(works[0].tokens)[0])
    works[0].kv.blocks, works[0].kv.computed = blocks, 60
    works[0].tokens.append(0)
    batch = scheduler(pool).next_batch(works, 0.0, AS_MEASURED)
    assert batch is not None
    assert [(part.start, part.count, part.adopted) for part in batch.parts] == [
        (60, 1, ()),
        (32, 28, (blocks[0],)),
        (32, 28, (blocks[0],)),
    ]


def test_a_long_sequence_takes_the_place_of_several() -> None:
    pool = BlockPool(16)  # four for each of the four lanes
    load = scheduler(pool).job(sequence(prompt=5, max_tokens=300), 0.0).options[0].load
    assert load.items == 3
    assert scheduler(pool).job(sequence(prompt=5, max_tokens=40), 0.0).options[0].load.items == 1


class _Play:
    """A scheduler on a small pool, its batches carried out without a model: every drawn token is its position."""

    def __init__(self, blocks: int, works: list[Sequence]) -> None:
        self.store = KvStore(Pages(SMALL, blocks + 1))
        self.scheduler = scheduler(self.store.pool)
        self.works = works

    def step(self) -> None:
        batch = self.scheduler.next_batch(self.works, 0.0, AS_MEASURED)
        assert batch is not None
        assert 1 <= len(batch.parts) <= PLANNING.max_batch
        running = {id(part.sequence) for part in batch.parts}
        assert running.isdisjoint(map(id, batch.evicted))
        assert sum(part.count for part in batch.parts if part.count > 1) <= COSTS.chunk_tokens
        make_room(self.store, batch.parts, batch.evicted)
        for part in batch.parts:
            work = part.sequence
            assert part.start == work.kv.computed
            assert len(work.kv.blocks) * BLOCK_TOKENS >= part.start + part.count
            self.store.computed(work.kv, work.tokens, part.count)
            if part.draws:
                assert work.uncomputed == 0
                work.tokens.append(work.new_tokens)
                if work.new_tokens >= work.max_tokens:
                    self.store.release(work.kv)
                    self.works.remove(work)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 130), st.integers(1, 60)), min_size=1, max_size=9),
    st.integers(7, 14),
)
@settings(max_examples=60, deadline=None)
def test_whatever_the_pool_holds_every_sequence_comes_to_its_end(rows: list[tuple[int, int, int]], blocks: int) -> None:
    """Prompts of three beginnings share blocks; the pool holds little more than the longest; nothing leaks."""
    works = []
    for kind, prompt, max_tokens in rows:
        work = sequence(due_s=1e6, prompt=prompt, max_tokens=max_tokens)
        work.tokens = [kind] * prompt
        work.kv.chain = Chain("tenant", b"model")
        works.append(work)
    play = _Play(blocks, works)
    most = sum(prompt + max_tokens for _, prompt, max_tokens in rows) * 10
    while play.works:
        play.step()
        most -= 1
        assert most > 0
    assert play.store.pool.available == blocks


def test_costs_learned_on_the_way_change_the_plan() -> None:
    setting = scheduler().setting(1.0, ((2.0, 5.0),), Cost(3.0))
    assert setting == replace(PLANNING, now_s=1.0, foreign=((2.0, 5.0),), scale=Cost(3.0))


def test_texts_that_end_early_are_not_declared_at_full_length() -> None:
    """The last rung stays whole, being the promise, and no rung seems to end with the next token."""
    lengths = LengthModel()
    for _ in range(300):
        lengths.observe(prompt_tokens=5, begun=0, new_tokens=24, ended=True)
    learned = TextScheduler(COSTS, BlockPool(64), PLANNING, lengths)
    assert steps(sequence()) == [100, 75, 50, 25, 16]
    expected = [option.load for option in learned.job(sequence(), 0.0).options]
    assert expected[0].steps_left < 60
    assert [load.steps_left for load in expected] == sorted((load.steps_left for load in expected), reverse=True)
    assert expected[-1] == scheduler().job(sequence(), 0.0).options[-1].load
    assert expected[0].setup.var_ms2 > 0
    exact = sequence(level=common_pb2.ServiceLevel(exact="100%"))
    assert [option.load.steps_left for option in learned.job(exact, 0.0).options] == [100]
    about_to_end = learned.job(sequence(held=BlockPool(64), done=24), 0.0).options
    assert [option.load.steps_left for option in about_to_end][-1] == 1
    assert all(option.load.steps_left >= 2 for option in about_to_end[:-1])
