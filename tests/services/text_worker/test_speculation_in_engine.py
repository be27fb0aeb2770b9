"""Speculation through scheduler and engine with the model that ships: the same tokens, bit for bit, and nothing left.

Time stands still, so nothing here depends on the host. Weights of 8 bits, and fp32 in batch-invariant mode, give a row
the same bits in any batch; so what is told of each token must be equal too, to the last bit.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import torch
from text_rig import MODEL

from headway.cost import Cost, StepCurve
from headway.deadline import Budget
from headway.planning import Setting, plan_queue
from headway.quality import read_wish
from headway.ticket import Finished, Ticket
from headway.v1 import common_pb2, text_pb2
from services.text_worker.backend import Blocks, Model
from services.text_worker.costs import TextCosts
from services.text_worker.cpu.linear import WeightKind
from services.text_worker.cpu.model import CpuModel
from services.text_worker.cuda.model import CudaModel
from services.text_worker.cuda.pages import CudaPages
from services.text_worker.drafting import Drafter
from services.text_worker.engine import TextEngine
from services.text_worker.kv.chain import Chain
from services.text_worker.kv.pages import Pages
from services.text_worker.kv.store import KvStore, blocks_of
from services.text_worker.model.families import load_architecture
from services.text_worker.sampling import Drawn, Guide, Sampler, Sampling
from services.text_worker.scheduler import TextBatch, TextScheduler
from services.text_worker.sequence import LADDER, Delta, Ending, Sequence, goals_of
from services.text_worker.speculation import MOST_DRAFTS, Lookup, Mode
from services.text_worker.structure import Structure, Structures
from services.text_worker.tokenizer import Detokenizer, StopStrings, load_tokenizer

ARCHITECTURE = load_architecture(MODEL)
TOKENIZER = load_tokenizer(MODEL, ARCHITECTURE)
COSTS = TextCosts(
    decode=StepCurve(((1, Cost(4.0)), (8, Cost(6.0)))), prefill=StepCurve(((8, Cost(4.0)),)), chunk_tokens=64
)
PLANNING = Setting(now_s=0.0, curve=COSTS.decode, max_batch=4)
TELLING = Sampling(logprobs=2)
SAID = "The iterator protocol is a protocol. The iterator protocol is a protocol. The iterator protocol is"
REPEATED = tuple(TOKENIZER.encode(SAID))
LONG_S = 1e6


@cache
def model(kind: WeightKind) -> CpuModel:
    torch.set_num_threads(1)
    return CpuModel.load(MODEL, ARCHITECTURE, kind, invariant=True)


def as_on_a_gpu(blocks: int) -> tuple[Model, Blocks]:
    device = torch.device("cpu")
    made = CudaModel.load(MODEL, ARCHITECTURE, torch.float32, context=ARCHITECTURE.context, device=device)
    pages = CudaPages(ARCHITECTURE, blocks, torch.float32, device)
    made.prepare(pages, 16)
    return made, pages


def some_prompts(count: int) -> list[tuple[int, ...]]:
    draw = random.Random(3)
    return [tuple(draw.randrange(2, ARCHITECTURE.vocab) for _ in range(draw.randint(3, 60))) for _ in range(count)]


def sequence(
    prompt: tuple[int, ...] = REPEATED,
    max_tokens: int = 48,
    sampling: Sampling = TELLING,
    *,
    due_s: float = LONG_S,
    stops: tuple[str, ...] = (),
    end_ids: frozenset[int] = frozenset(),
    guide: Guide | None = None,
) -> Sequence:
    wish = read_wish(common_pb2.ServiceLevel(), LADDER, common_pb2.KIND_TEXT)
    made = Sequence(
        ticket=Ticket(Budget(0.0, due_s, 0.0), wish, due_s),
        tokens=list(prompt),
        prompt_tokens=len(prompt),
        max_tokens=max_tokens,
        resumed_tokens=0,
        goals=goals_of(wish, max_tokens),
        sampler=Sampler.start(sampling, prompt, guide=guide),
        end_ids=end_ids,
        detokenizer=Detokenizer(TOKENIZER),
        stops=StopStrings(stops),
    )
    made.kv.chain = Chain("tenant", b"model")
    return made


@dataclass
class Played:
    """What came of one sequence."""

    text: str = ""
    told: list[Drawn] = field(default_factory=list)
    reason: str = ""
    deltas: list[int] = field(default_factory=list)
    """Tokens in each."""


class Play:
    """Scheduler and engine over one cache, stepped by hand, time standing still."""

    def __init__(
        self,
        speculate: Mode,
        kind: WeightKind = "int8",
        blocks: int = 64,
        *,
        as_gpu: bool = False,
        drafter: Drafter | None = None,
    ) -> None:
        """`as_gpu`: on the path of GPUs, fp32, where it is torch alone."""
        self.drafted = self.accepted = self.steps = 0
        runs, pages = as_on_a_gpu(blocks + 1) if as_gpu else (model(kind), Pages(ARCHITECTURE, blocks + 1))
        self.store = KvStore(pages)
        self.scheduler = TextScheduler(COSTS, self.store.pool, PLANNING, speculate=speculate, drafter=drafter)
        self.engine = TextEngine(runs, self.store, COSTS, clock=lambda: 0.0, told=self._told, drafter=drafter)

    def _told(self, drafted: int, accepted: int) -> None:
        self.drafted, self.accepted = self.drafted + drafted, self.accepted + accepted

    def run(self, *works: Sequence) -> list[Played]:
        played = {work.ticket.key: Played() for work in works}
        going = list(works)
        while going:
            for ticket, event in self._step(going):
                found = played[ticket.key]
                if isinstance(event, Delta):
                    found.text, found.told = found.text + event.text, [*found.told, *event.logprobs]
                    found.deltas.append(len(event.token_ids))
                else:
                    assert isinstance(event, Finished), event
                    assert isinstance(event.result, Ending)
                    found.reason = text_pb2.FinishReason.Name(event.result.reason).removeprefix("FINISH_REASON_")
                    ended = next(work for work in going if work.ticket is ticket)
                    going.remove(ended)
                    self.engine.release(ended)
        assert self.store.pool.available == self.store.pool.blocks
        return list(played.values())

    def _step(self, going: list[Sequence]) -> Iterator[tuple[Ticket, Any]]:
        self.steps += 1
        plan = plan_queue([self.scheduler.job(work, 0.0) for work in going], PLANNING)
        for work in going:
            work.ticket.choice = plan[work.ticket.key]
            work.ticket.plan = work.ticket.plan or common_pb2.Plan(steps=work.max_tokens)
        works = sorted(going, key=lambda work: list(plan).index(work.ticket.key))
        batch = self.scheduler.next_batch(works, 0.0, Cost(1.0))
        assert isinstance(batch, TextBatch)
        events = self.engine.apply(batch, self.engine.run(batch), 0.0)
        for part in batch.parts:
            assert len(part.sequence.kv.blocks) == blocks_of(part.sequence.kv.computed)  # none for refused drafts
        yield from events


Asked = Callable[[], list[Sequence]]


def same_with_and_without(asked: Asked, kind: WeightKind = "int8") -> tuple[list[Played], Play]:
    """Plays anew in each mode; gives what came, which is the same in all, and the play that drafted most."""
    plain = Play("off", kind)
    expected = plain.run(*asked())
    assert plain.drafted == 0
    for mode in ("auto", "lookup"):
        play = Play(mode, kind)
        found = play.run(*asked())
        for one, other in zip(expected, found, strict=True):
            assert (one.text, one.told, one.reason) == (other.text, other.told, other.reason)
        assert play.steps <= plain.steps
    return found, play


@pytest.mark.parametrize("kind", ["int8", "fp32"])
def test_greedy_answers_are_the_same_bits(kind: WeightKind) -> None:
    """Repeating and random prompts beside each other in a batch."""
    prompts = [REPEATED, *some_prompts(2), tuple(range(40, 60)) * 3]
    _, play = same_with_and_without(lambda: [sequence(prompt) for prompt in prompts], kind)
    assert play.accepted > 10
    assert play.drafted > play.accepted  # so some were refused, and left no trace


def test_drawn_answers_are_the_same_bits() -> None:
    """The noise of a place in the answer does not know in which step it is used."""
    samplings = [replace(TELLING, temperature=0.2, top_p=0.9, seed=seed) for seed in range(3)]
    samplings.append(replace(TELLING, temperature=1.5, seed=9, logit_bias=((77, 3.0),)))
    _, play = same_with_and_without(lambda: [sequence(max_tokens=96, sampling=sampling) for sampling in samplings])
    assert play.accepted > 5


def test_one_alone_takes_fewer_steps() -> None:
    (found,), play = same_with_and_without(lambda: [sequence(max_tokens=60)])
    assert play.steps == 60 - play.accepted < 50
    assert found.deltas[0] == 1  # the first token travels alone
    assert sum(found.deltas) == 60


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_an_answer_ends_where_it_would(share: float) -> None:
    """By a stop string, a stop token and its length, in the midst of drafts that were right."""
    (whole,), play = same_with_and_without(lambda: [sequence()])
    assert play.accepted > 0
    place = int(share * len(whole.told))
    cut = whole.text[int(share * len(whole.text)) :][:5]
    stop = whole.told[place].token
    (ended,), _ = same_with_and_without(lambda: [sequence(stops=(cut,))])
    assert (ended.reason, ended.text) == ("STOP_STRING", whole.text[: whole.text.index(cut)])
    (ended,), _ = same_with_and_without(lambda: [sequence(end_ids=frozenset({stop}))])
    assert ended.reason == "STOP"
    assert [one.token for one in ended.told] == [one.token for one in whole.told][: len(ended.told)]
    (ended,), _ = same_with_and_without(lambda: [sequence(max_tokens=place)])
    assert (ended.reason, len(ended.told)) == ("LENGTH", place)


@pytest.mark.parametrize(
    "penalty", [{"repetition_penalty": 1.3}, {"presence_penalty": 0.5}, {"frequency_penalty": 0.5}]
)
def test_who_looks_back_takes_no_drafts(penalty: dict[str, float]) -> None:
    sampling = replace(TELLING, **penalty)
    _, play = same_with_and_without(lambda: [sequence(sampling=sampling)])
    assert play.drafted == 0


def test_a_structured_answer_takes_no_drafts_and_others_beside_it_do() -> None:
    structures = Structures(TOKENIZER, ARCHITECTURE.vocab)
    asked = Structure("regex", "(ab){4,9}c")
    _, play = same_with_and_without(lambda: [sequence(guide=structures.guide(asked))])
    assert play.drafted == 0
    _, play = same_with_and_without(lambda: [sequence(guide=structures.guide(asked)), sequence()])
    assert play.accepted > 0


def test_what_accepted_drafts_left_in_the_cache_serves_who_goes_on() -> None:
    """A conversation's next turn takes over the blocks that its answer filled."""
    (answer,), play = same_with_and_without(lambda: [sequence(max_tokens=80)])
    longer = (*REPEATED, *(one.token for one in answer.told), 5)
    fresh = Play("off").run(sequence(longer))[0]
    turn = sequence(longer)
    follow = play.run(turn)[0]
    assert turn.cached_tokens > len(REPEATED)
    assert follow.told == fresh.told


@pytest.mark.parametrize("speculate", ["off", "lookup"])
def test_the_path_of_gpus_runs_in_the_same_loop(speculate: Mode) -> None:
    prompts = [REPEATED, *some_prompts(2), tuple(range(40, 60)) * 3]
    expected = Play("off", "fp32").run(*(sequence(prompt) for prompt in prompts))
    play = Play(speculate, as_gpu=True)
    found = play.run(*(sequence(prompt) for prompt in prompts))
    assert [one.text for one in found] == [one.text for one in expected]
    assert (play.accepted > 10) == (speculate == "lookup")


def test_a_cache_that_hardly_holds_one_is_not_overrun() -> None:
    prompts = [REPEATED, tuple(range(40, 60)) * 3, REPEATED[5:]]
    expected = Play("off").run(*(sequence(prompt) for prompt in prompts))
    for blocks in (5, 6, 8):
        play = Play("lookup", blocks=blocks)
        found = play.run(*(sequence(prompt) for prompt in prompts))
        assert [one.told for one in found] == [one.told for one in expected]
        assert play.accepted > 0


def until_it_repeats(*works: Sequence) -> Play:
    """Steps without drafts until the last of the sequences could take as many as there may be."""
    play = Play("off")
    while not Lookup().drafts(works[-1].tokens, 1) or not all(work.new_tokens for work in works):
        list(play._step(list(works)))
    return play


def next_step(play: Play, speculate: Mode, *works: Sequence) -> TextBatch:
    scheduler = TextScheduler(COSTS, play.store.pool, PLANNING, speculate=speculate)
    plan = plan_queue([scheduler.job(work, 0.0) for work in works], PLANNING)
    for work in works:
        work.ticket.choice = plan[work.ticket.key]
    batch = scheduler.next_batch(works, 0.0, Cost(1.0))
    assert isinstance(batch, TextBatch)
    return batch


def drafts_beside(spare_ms: float, floor: int, priority: common_pb2.Priority) -> int:
    """Drafts of one that repeats itself beside one whose whole plan leaves so much time, and that is promised less."""
    other, repeats = sequence(some_prompts(1)[0], max_tokens=200), sequence()
    play = until_it_repeats(other, repeats)
    level = common_pb2.ServiceLevel(at_least=common_pb2.QualityFloor(tokens=floor), priority=priority)
    other.ticket.wish = read_wish(level, LADDER, common_pb2.KIND_TEXT)
    other.goals = goals_of(other.ticket.wish, 200)
    plan = plan_queue([play.scheduler.job(work, 0.0) for work in (other, repeats)], PLANNING)
    due_s = (plan[other.ticket.key].finish.mean_ms + spare_ms) / 1000
    other.ticket.budget, other.ticket.target_s = Budget(0.0, due_s, 0.0), due_s
    parts = next_step(play, "lookup", other, repeats).parts
    assert [part.sequence for part in parts] == [other, repeats]
    return len(parts[1].drafts)


def test_drafts_leave_every_promise_the_time_it_needs() -> None:
    low, normal, high = common_pb2.PRIORITY_LOW, common_pb2.PRIORITY_NORMAL, common_pb2.PRIORITY_HIGH
    assert drafts_beside(1000.0, 200, normal) == MOST_DRAFTS
    assert drafts_beside(1e-3, 200, normal) == 0
    row_ms = COSTS.decode.at(3).mean_ms - COSTS.decode.at(2).mean_ms
    assert drafts_beside(3.5 * row_ms, 200, normal) == 3
    assert drafts_beside(1e-3, 100, normal) == MOST_DRAFTS
    assert drafts_beside(1e-3, 100, low) == MOST_DRAFTS
    assert drafts_beside(1e-3, 100, high) == 0  # its plan is not lowered for drafts of less priority


def test_a_step_with_drafts_is_predicted_dearer() -> None:
    repeats = sequence()
    play = until_it_repeats(repeats)
    plain, drafting = next_step(play, "off", repeats), next_step(play, "lookup", repeats)
    rows = 1 + len(drafting.parts[0].drafts)
    assert rows == 1 + MOST_DRAFTS
    assert plain.predicted == COSTS.decode.at(1)
    assert drafting.predicted == COSTS.decode.at(rows)
    assert drafting.bound_ms > plain.bound_ms
