"""What the text engine runs next, and what the planner must know of each sequence. Pure."""

from collections.abc import Sequence as Several
from dataclasses import dataclass, field, replace
from functools import partial

from headway.cost import ZERO, Cost, Foreign, Load
from headway.engine import Batch
from headway.planning import Job, Option, Setting
from headway.prefix import BLOCK_TOKENS
from services.text_worker.costs import TextCosts
from services.text_worker.drafting import Drafter
from services.text_worker.kv.pages import Numbers
from services.text_worker.kv.pool import BlockPool
from services.text_worker.lengths import LengthModel
from services.text_worker.options import options_of
from services.text_worker.restored import next_block, restored_blocks
from services.text_worker.room import Room
from services.text_worker.sequence import Sequence
from services.text_worker.speculation import MOST_DRAFTS, Candidate, Mode, least_chance, worth

LEAST_CHUNK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Part:
    """`count` tokens of a sequence from `start` on, up to which all are cached."""

    sequence: Sequence
    start: int
    count: int
    draws: bool
    """The step brings a new token for it."""
    adopted: tuple[int, ...] = ()
    """Blocks of the KV cache that the sequence begins with, because another began alike."""
    drafts: tuple[int, ...] = ()
    """Tokens that may follow the sequence's newest one, run behind it on trial."""
    guesses: int = 0
    """So many of them are left to the small model, which makes them when the step runs."""
    restored: tuple[Numbers, ...] = ()
    """Contents of the blocks that `count` tokens fill, where another worker computed them: nothing is run then."""

    @property
    def end(self) -> int:
        """Tokens that the cache holds after the step, the drafts' included."""
        return self.start + self.count + max(len(self.drafts), self.guesses)


@dataclass(frozen=True, slots=True)
class TextBatch(Batch[Sequence]):
    """One step: prefill chunks and decode steps in any mix."""

    parts: tuple[Part, ...]
    ending: tuple[Sequence, ...]
    """Sequences past their floor that this step would make late: they end as they are."""
    evicted: tuple[Sequence, ...]
    """Sequences that give their blocks to more urgent ones; what is lost of them is computed anew in their turn."""
    bound_ms: float
    """What the step takes at most, at the admission quantile, with the time to answer."""
    _by_key: dict[int, Part] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._by_key.update((part.sequence.ticket.key, part) for part in self.parts)

    def after(self, job: Job) -> Job | None:
        """See `headway.engine.Batch`: a chunk takes its share of the prefill, and the last brings a token."""
        part = self._by_key.get(job.key)
        if part is None:
            return None  # it ends as it is
        share = 0.0 if part.draws else 1 - part.count / (len(part.sequence.tokens) - part.start)
        options = tuple(_less(option, share, int(part.draws)) for option in job.options)
        return Job(job.key, job.priority, job.due_s, job.target_s, options)


def _less(option: Option, share: float, tokens: int) -> Option:
    """An option with this share of its prefill and so many tokens less to come; a text may still end after each."""
    load = option.load
    setup = Cost(load.setup.mean_ms * share, load.setup.var_ms2)  # how its length varies stays
    return Option(option.rung, Load(load.due_s, load.items, max(1, load.steps_left - tokens), setup))


@dataclass(frozen=True, slots=True)
class _Offer:
    """Drafts that a sequence could have in a step."""

    most: int
    chance: float
    drafts: tuple[int, ...] = ()
    """None: the small model is to make them."""
    making_ms: float = 0.0
    """What it takes for each of them."""
    once_ms: float = 0.0
    """What it takes at most before the first."""


@dataclass(frozen=True, slots=True)
class _Limits:
    """What a step may hold."""

    prefill_tokens: int
    now_s: float
    wait_end_s: float
    """How long a sequence may wait for its blocks without danger to any promise."""

    def lets_wait(self, work: Sequence, start: int) -> bool:
        """Whether to leave `work` for blocks that are on their way to it, rather than to compute them."""
        coming = work.coming
        if coming is None or coming.until_s > self.wait_end_s:
            return False
        block = next_block(work, start)
        return block is not None and coming.awaits(block, self.now_s)


class TextScheduler:
    """Every step takes the most urgent sequences, whatever their lengths and plans; new ones join at the next step.

    Nothing starves and nothing locks up: the most urgent sequence always gets room, from all others if it must, and
    the cache holds at least one whole context.
    """

    def __init__(
        self,
        costs: TextCosts,
        pool: BlockPool,
        planning: Setting,
        lengths: LengthModel | None = None,
        speculate: Mode = "off",
        drafter: Drafter | None = None,
    ) -> None:
        """`planning` holds what does not change: batch limit, quantiles, overhead. `pool` is only looked at.

        `lengths` says how long texts will be; None: as long as was asked. `drafter` makes drafts; it is only looked at.
        """
        self._drafter = drafter if speculate in ("draft", "auto") else None
        self.costs, self._pool, self._planning, self._speculate = costs, pool, planning, speculate
        self._lengths = lengths or LengthModel()
        self._least_chances: dict[int, float] = {}  # by decoding sequences; costs are as calibrated, and stay
        self._share = pool.blocks / planning.max_batch  # blocks for each sequence of a full batch

    def setting(self, now_s: float, foreign: Foreign, scale: Cost) -> Setting:
        """See `headway.engine.Scheduler`."""
        return replace(self._planning, now_s=now_s, foreign=foreign, scale=scale)

    def job(self, work: Sequence, now_s: float) -> Job:
        """See `headway.engine.Scheduler`."""
        ticket = work.ticket
        uncomputed = len(work.tokens) - self._reach(work)[0]
        prefill = self.costs.prefill_cost(uncomputed) if uncomputed > 1 else ZERO
        full_ms = self.costs.decode.at(self._planning.max_batch).mean_ms
        options = options_of(work, prefill, self._share, self._lengths, full_ms)
        return Job(ticket.key, ticket.wish.priority, ticket.budget.due_s, ticket.target_s, options)

    def next_batch(self, works: Several[Sequence], now_s: float, scale: Cost) -> TextBatch | None:
        """See `headway.engine.Scheduler`; `works` come most urgent first."""
        ending = self._ending(works[: self._planning.max_batch], now_s, scale)
        going = [work for work in works if work not in ending]
        room = Room(self._pool, going)
        limits = _Limits(self._prefill_limit(going, now_s, scale), now_s, self._wait_end_s(going, now_s, scale))
        parts = self._parts(going, room, limits)
        if self._speculate != "off":
            parts = self._with_drafts(parts, going, room, now_s, scale)
        prefill, drafts = _prefill_of(parts), sum(max(len(part.drafts), part.guesses) for part in parts)
        restored = _restored_of(parts)
        if not parts and not ending and not room.evicted:
            return None  # all that there is waits for blocks
        predicted = self.costs.step_cost(sum(map(_decodes, parts)), prefill, drafts, restored) + self._making(parts)
        return TextBatch(
            stage="prefill" if prefill or restored else "decode",
            works=(*(part.sequence for part in parts), *ending),
            items=len(parts),
            predicted=predicted,
            parts=tuple(parts),
            ending=ending,
            evicted=tuple(room.evicted),
            bound_ms=self._bound_ms(predicted, scale),
        )

    def _parts(self, going: Several[Sequence], room: Room, limits: "_Limits") -> list[Part]:
        """Decode steps and prefill chunks in order of urgency; what is restored counts as a chunk."""
        parts: list[Part] = []
        left = limits.prefill_tokens
        coming: set[bytes] = set()  # blocks that sequences before this one are about to compute
        for work in going[: self._planning.max_batch]:
            if work in room.evicted:
                continue
            if _ready(work) and room.holds_next(work):  # nearly always: nothing to find room for
                parts.append(Part(work, work.kv.computed, 1, draws=True))
                continue
            start, adopted = self._reach(work)
            decodes = len(work.tokens) - start == 1 and not adopted
            restored = restored_blocks(work, start, left)
            waits = not restored and limits.lets_wait(work, start)
            count = len(restored) * BLOCK_TOKENS or (1 if decodes else min(left, len(work.tokens) - start))
            if waits:
                coming.update(work.kv.chain.over(work.tokens)[start // BLOCK_TOKENS :])
            if waits or count == 0 or (not work.kv.blocks and _comes(work, start, coming)):
                continue
            count = room.fit(work, start, count, adopted, spare=0 if work.kv.blocks else len(parts))
            restored = restored[: count // BLOCK_TOKENS]
            count = len(restored) * BLOCK_TOKENS or count
            if count == 0:
                continue
            room.claim(work, start, count, adopted)
            parts.append(Part(work, start, count, start + count == len(work.tokens), adopted, restored=restored))
            if not decodes:
                left -= count
                coming.update(work.kv.chain.over(work.tokens)[start // BLOCK_TOKENS :])
        return parts

    def _with_drafts(
        self, parts: list[Part], going: Several[Sequence], room: Room, now_s: float, scale: Cost
    ) -> list[Part]:
        """The parts, with the drafts that are worth their rows and put no admitted deadline in danger."""
        decodes, may = sum(map(_decodes, parts)), [place for place, part in enumerate(parts) if _may_draft(part)]
        if not may or not self._may_pay([parts[place].sequence for place in may], decodes):
            return parts  # before anything is looked for
        found = [(place, self._offer(parts[place], room, len(may), scale)) for place in may]
        offers = [(place, offer) for place, offer in found if offer is not None]
        if not offers:
            return parts
        prefill, restored = _prefill_of(parts), _restored_of(parts)

        cost_ms = partial(self._draft_cost_ms, decodes)

        def bound_ms(rows: int) -> float:
            return self._bound_ms(self.costs.step_cost(decodes, prefill, rows, restored), scale)

        priorities = [parts[place].sequence.ticket.wish.priority for place, _ in offers]
        step_ms = cost_ms(0) * scale.mean_ms
        patience_ms = {
            priority: self._patience_ms(going, priority, now_s, step_ms, bound_ms(0)) for priority in {*priorities}
        }
        candidates = [
            Candidate(offer.most, offer.chance, patience_ms[priority] - offer.once_ms, offer.making_ms)
            for priority, (_, offer) in zip(priorities, offers, strict=True)
        ]
        at_any_cost = self._speculate in ("lookup", "draft")
        counts = worth(candidates, decodes, cost_ms, bound_ms, at_any_cost=at_any_cost)
        for (place, offer), count in zip(offers, counts, strict=True):
            guesses = 0 if offer.drafts else count
            parts[place] = replace(parts[place], drafts=offer.drafts[:count], guesses=guesses)
        return parts

    def _may_pay(self, works: Several[Sequence], decodes: int) -> bool:
        """Whether drafts could be wanted for any of `works`, however many were found."""
        if self._speculate in ("lookup", "draft"):
            return True
        if decodes not in self._least_chances:
            cost_ms = partial(self._draft_cost_ms, decodes)
            self._least_chances[decodes] = least_chance(decodes, cost_ms)
        guessed = max(work.guessing.chance for work in works) if self._drafter is not None else 0.0
        return max(guessed, *(work.acceptance.chance for work in works)) > self._least_chances[decodes]

    def _draft_cost_ms(self, decodes: int, rows: int) -> float:
        return self.costs.step_cost(decodes, 0, rows).mean_ms

    def _making(self, parts: Several[Part]) -> Cost:
        """What the small model takes for its drafts before the step."""
        if self._drafter is None:
            return ZERO
        return self._drafter.cost([(self._drafter.lag(part.sequence), part.guesses) for part in parts if part.guesses])

    def _offer(self, part: Part, room: Room, size: int, scale: Cost) -> "_Offer | None":
        """What may follow: no further than the answer goes, and than there are free blocks.

        Looked up where that is right as often as what the small model makes, one of `size` sequences at once.
        """
        work = part.sequence
        most = min(MOST_DRAFTS, work.goals[0].tokens - work.new_tokens - 1)
        drafts = work.lookup.drafts(work.tokens, most) if self._speculate != "draft" else ()
        if self._drafter is None or (drafts and work.acceptance.chance >= work.guessing.chance):
            drafts = drafts[: room.extend(part.end, len(drafts))]
            return _Offer(len(drafts), work.acceptance.chance, drafts) if drafts else None
        count = room.extend(part.end, self._drafter.room(work, most))
        if count < 1:
            return None
        lag = self._drafter.lag(work)
        once = self._drafter.catching_up(lag)
        # A prompt is run once for all that follow, what the last drafts left each time anew.
        shared_by = count if lag <= 1 + MOST_DRAFTS else work.goals[0].tokens - work.new_tokens
        making_ms = self._drafter.costs.decode.at(size).mean_ms / size + once.mean_ms / shared_by
        once_ms = once.scaled(scale).quantile_ms(self._planning.admission_quantile)
        return _Offer(count, work.guessing.chance, (), making_ms, once_ms)

    def _patience_ms(
        self, works: Several[Sequence], priority: int, now_s: float, step_ms: float, bound_ms: float
    ) -> float:
        """How much longer a step may take for drafts of this priority, over its bound, with every deadline kept.

        Whoever has more priority also keeps what is planned for him; the others keep their floors.
        """
        return min(
            self._spare_ms(work, now_s, step_ms if work.ticket.wish.priority <= priority else 0.0, bound_ms)
            for work in works
        )

    def _spare_ms(self, work: Sequence, now_s: float, step_ms: float, bound_ms: float) -> float:
        """Until its deadline, less what is left to do and `step_ms` for each step that its plan is over its floor."""
        choice, left_ms = work.ticket.choice, work.ticket.budget.remaining_s(now_s) * 1000
        if choice is None:
            return 0.0
        finish_ms = choice.finish.quantile_ms(self._planning.admission_quantile) + self._planning.overhead_ms
        lowered = choice.option.load.steps_left - choice.job.options[-1].load.steps_left
        step_left_ms = left_ms - bound_ms if _ready(work) else left_ms
        return min(step_left_ms, left_ms - finish_ms + lowered * step_ms)

    def _reach(self, work: Sequence) -> tuple[int, tuple[int, ...]]:
        """How many tokens are cached, and for a sequence that holds nothing yet the blocks that hold them.

        The last token is always run, because its logits are wanted.
        """
        if work.kv.blocks:
            return work.kv.computed, ()
        adopted = self._pool.match(work.kv.chain.over(work.tokens))
        return min(len(adopted) * BLOCK_TOKENS, len(work.tokens) - 1), adopted

    def _ending(self, lanes: Several[Sequence], now_s: float, scale: Cost) -> tuple[Sequence, ...]:
        over = [work for work in lanes if work.over_floor]
        if not over:
            return ()
        decodes = sum(map(_ready, lanes))
        end_s = now_s + self._bound_ms(self.costs.step_cost(max(1, decodes), 0), scale) / 1000
        return tuple(work for work in over if end_s > work.ticket.budget.due_s)

    def _bound_ms(self, predicted: Cost, scale: Cost) -> float:
        step_ms = predicted.scaled(scale).quantile_ms(self._planning.admission_quantile)
        return step_ms + self._planning.overhead_ms

    def _wait_end_s(self, works: Several[Sequence], now_s: float, scale: Cost) -> float:
        """Until when nothing need be run for every promise to be kept; only looked at where blocks are on their way."""
        if all(work.coming is None for work in works):
            return now_s
        step_ms = self.costs.decode.at(1).mean_ms * scale.mean_ms
        return now_s + min(self._spare_ms(work, now_s, step_ms, 0.0) for work in works) / 1000

    def _prefill_limit(self, going: Several[Sequence], now_s: float, scale: Cost) -> int:
        """Prefill tokens that the step may hold: no more than the tightest decoding sequence bears."""
        left = self.costs.chunk_tokens
        decodes = [work for work in going[: self._planning.max_batch] if _ready(work)]
        if decodes:
            tightest_ms = min(work.ticket.budget.remaining_s(now_s) for work in decodes) * 1000
            while left > LEAST_CHUNK_TOKENS:
                if self._bound_ms(self.costs.step_cost(len(decodes), left), scale) <= tightest_ms:
                    break
                left = max(LEAST_CHUNK_TOKENS, left // 2)
        return left


def _ready(work: Sequence) -> bool:
    """All but its newest token is cached: it decodes."""
    return bool(work.kv.blocks) and work.uncomputed == 1


def _decodes(part: Part) -> bool:
    return part.count == 1 and part.draws


def _may_draft(part: Part) -> bool:
    """Drafts are right only where a token is drawn from its logits and place alone."""
    return _decodes(part) and not part.adopted and not part.sequence.sampler.looks_back


def _prefill_of(parts: Several[Part]) -> int:
    return sum(part.count for part in parts if not _decodes(part) and not part.restored)


def _restored_of(parts: Several[Part]) -> int:
    return sum(len(part.restored) for part in parts)


def _comes(work: Sequence, start: int, coming: set[bytes]) -> bool:
    """Its next block is computed in this step for another: it waits a step and takes that over."""
    chain, place = work.kv.chain.over(work.tokens), start // BLOCK_TOKENS
    return place < len(chain) and chain[place] in coming
