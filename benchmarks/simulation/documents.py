"""Texts whose prompts begin alike, in a closed loop: which cache holds what is played as it is in the real workers.

What decides is real: placement, ledger and prefix index of the router, scheduler, planner and pool of blocks of the
worker, and what it publishes of its prompts. Nothing is computed: steps take what they cost. Prompts come as tokens.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tokenizers import Tokenizer, models

from benchmarks.simulation.clock import Clock
from benchmarks.simulation.device import OwnDevice
from benchmarks.simulation.host import EXACT, Host
from benchmarks.simulation.models import ADMISSION_QUANTILE, ASSET, RUNG_QUANTILE, Curves, Done
from benchmarks.simulation.router import Request, VirtualRouter
from benchmarks.simulation.worker import VirtualWorker
from headway.cost import Cost, Load, StepCurve
from headway.errors import HeadwayError
from headway.planning import Setting
from headway.policy import policy_of
from headway.prefix import BLOCK_TOKENS, TOKEN_BYTES, canonical_tokens
from headway.prompts import prompt_chunks
from headway.quality import Ladder, Rung
from headway.requests import service_level
from headway.ticket import Ticket
from headway.v1 import common_pb2, prefix_cache_pb2
from services.router.ledger import REPORT_INTERVAL_S
from services.router.prefixes import KnownPrompts, PrefixIndex, Shared
from services.router.quotas import Quotas
from services.text_worker.costs import TextCosts
from services.text_worker.engine import make_room
from services.text_worker.kv.chain import Chain
from services.text_worker.kv.store import KvStore
from services.text_worker.prefixes import HeldPrefixes
from services.text_worker.publishing import INTERVAL_S
from services.text_worker.sampling import Sampler, Sampling
from services.text_worker.scheduler import TextBatch, TextScheduler
from services.text_worker.sequence import LADDER, goals_of
from services.text_worker.sequence import Sequence as Text
from services.text_worker.tokenizer import Detokenizer, StopStrings, TextTokenizer

COSTS = TextCosts(
    decode=StepCurve(((1, Cost(4.0)), (4, Cost(4.6)), (16, Cost(6.4)))),
    prefill=StepCurve(((8, Cost(4.4)), (32, Cost(6.0)), (128, Cost(15.0)))),
    chunk_tokens=128,
)
"""About those of the model that ships, on one core."""
_TOKENIZER = TextTokenizer(Tokenizer(models.BPE()), frozenset(), None, 1)
_DEADLINE_S = 25.0
_HOP_S = 0.0005
_WORDS = 1000


@dataclass(frozen=True, slots=True)
class Documents:
    """What is asked: questions about documents, drawn evenly."""

    count: int = 16
    tokens: int = 384
    question_tokens: int = 14
    new_tokens: int = 24

    def prompt(self, number: int, draw: random.Random) -> tuple[int, ...]:
        """Of question `number`: no two are the same."""
        document = draw.randrange(self.count)
        body = random.Random(document).choices(range(_WORDS), k=self.tokens)
        return (*body, *[_WORDS + number] * self.question_tokens)


@dataclass(frozen=True, slots=True)
class Room:
    """Memory of a KV cache that holds nothing; the last block is the spare one."""

    blocks: int
    size_bytes: int = 0

    def copy(self, source: int, target: int) -> None: ...


@dataclass
class DocumentModel:
    """One worker's text model and its cache, as `benchmarks.simulation.models.Model` has it. Items are prompts."""

    prompts: Sequence[tuple[int, ...]]
    asked: Documents
    costs: TextCosts
    store: KvStore
    max_batch: int = 16
    held: HeldPrefixes = field(init=False)
    served: int = 0
    """Requests."""
    reused: int = 0
    """Prompt tokens that were in the cache."""
    name: str = "text"
    kind: common_pb2.Kind = common_pb2.KIND_TEXT
    ladder: Ladder = LADDER

    def __post_init__(self) -> None:
        self.held = HeldPrefixes(self.store.pool)

    @property
    def prefill_token_ms(self) -> float:
        """As the real worker reports it."""
        return self.costs.prefill.at(self.costs.chunk_tokens).mean_ms / self.costs.chunk_tokens

    @property
    def kept_kv_ms(self) -> float | None:
        """The same."""
        return None if self.store.pool.kept_s is None else self.store.pool.kept_s * 1000

    def scheduler(self) -> TextScheduler:
        planning = Setting(
            0.0, self.costs.decode, self.max_batch,
            rung_quantile=RUNG_QUANTILE, admission_quantile=ADMISSION_QUANTILE, overhead_ms=1.0,
        )  # fmt: skip
        return TextScheduler(self.costs, self.store.pool, planning)

    def work(self, ticket: Ticket, items: int) -> Text:
        prompt = self.prompts[items]
        made = Text(
            ticket, list(prompt), len(prompt), self.asked.new_tokens, 0, goals_of(ticket.wish, self.asked.new_tokens),
            Sampler(Sampling()), frozenset(), Detokenizer(_TOKENIZER), StopStrings(()),
        )  # fmt: skip
        made.kv.chain = Chain("", ASSET.encode())
        canonical = canonical_tokens(prompt)
        self.held.note(len(canonical), len(prompt), _chunks(canonical), made.kv.chain.over(prompt))
        return made

    def apply(self, batch: TextBatch) -> list[Done]:
        """As `services.text_worker.engine`, with the token that nobody knows."""
        make_room(self.store, batch.parts, batch.evicted)
        done = []
        for part in batch.parts:
            work = part.sequence
            self.reused += part.start if part.adopted and not work.ticket.steps_executed else 0
            self.store.computed(work.kv, work.tokens, part.count)
            if part.draws:
                work.ticket.steps_executed += 1
                work.tokens.append(0)
            if work.complete:
                self.store.release(work.kv)
                self.served += 1
                done.append(Done(work, work.goals[0].rung))
        return done

    def curves(self) -> Curves:
        return {(ASSET, ""): self.costs.decode}

    def reported(self, load: Load) -> Load:
        return load

    def sizes_of(self, items: int) -> dict[str, int]:
        """As `services.router.methods` reads a request."""
        tokens = len(self.prompts[items])
        return {"tokens": self.asked.new_tokens, "prompt_tokens": tokens, "bytes_per_token": TOKEN_BYTES}


def _chunks(canonical: bytes) -> Sequence[bytes]:
    return tuple(prompt_chunks(canonical, asset_hash=ASSET, secret=None, tenant=""))


@dataclass(frozen=True, slots=True)
class Mesh:
    """What is asked of what."""

    placement: str = "headway"
    """As the router's `--placement`."""
    workers: int = 2
    slower: float = 0.1
    """By this share of the first worker's time each further one takes longer for its steps; they know it."""
    cache_tokens: int = 4096
    """Room in each worker's cache, for what runs and for what is kept."""
    asked: Documents = field(default_factory=Documents)


@dataclass(frozen=True, slots=True)
class Figures:
    """One run, from an empty mesh on."""

    answers_per_s: float
    reused_share: float
    """Of the documents' tokens in the prompts."""
    mean_s: float
    """From asking to the answer."""
    shares: tuple[float, ...]
    """Of the requests, by worker."""


class _Loop:
    """A mesh and those who ask: each asks again when it has its answer, and has rested."""

    def __init__(self, mesh: Mesh, *, at_once: int, rest_s: float, count: int, seed: int) -> None:
        draw = random.Random(seed)
        self.clock, self._left, self._at_once, self._rest_s = Clock(), iter(range(count)), at_once, rest_s
        self._prompts = [mesh.asked.prompt(number, draw) for number in range(count)]
        self._index = PrefixIndex()
        self._known = KnownPrompts(self._index, None)
        self._telling, self._publishing = set[str](), set[str]()
        self.models = {f"worker-{number}": self._model(mesh, number) for number in range(mesh.workers)}
        workers = {name: self._worker(name, model) for name, model in self.models.items()}
        self._any = next(iter(self.models.values()))
        self._router = VirtualRouter(
            mesh.placement, workers, Quotas({}, self.clock), clock=self.clock, hop_s=_HOP_S,
            interval_s=REPORT_INTERVAL_S, seed=seed, over=self._over, known=self._shared,
        )  # fmt: skip
        self.taken_s: list[float] = []

    def _model(self, mesh: Mesh, number: int) -> DocumentModel:
        factor = Cost(1 + mesh.slower * number)
        costs = replace(COSTS, decode=COSTS.decode.scaled(factor), prefill=COSTS.prefill.scaled(factor))
        store = KvStore(Room(mesh.cache_tokens // BLOCK_TOKENS + 1), self.clock)
        return DocumentModel(self._prompts, mesh.asked, costs, store)

    def _worker(self, name: str, model: DocumentModel) -> VirtualWorker:
        return VirtualWorker(
            name, model, policy_of("headway", [LADDER]), clock=self.clock, device=OwnDevice(),
            host=Host(EXACT, random.Random(0)), changed=self._changed,
        )  # fmt: skip

    # --- what workers tell

    def _changed(self, worker: VirtualWorker) -> None:
        told = (self._telling, REPORT_INTERVAL_S, self._tell), (self._publishing, INTERVAL_S, self._publish)
        for waiting, interval_s, tell in told:
            if worker.name not in waiting:
                waiting.add(worker.name)
                self.clock.at(self.clock.now_s + interval_s, tell, worker)

    def _tell(self, worker: VirtualWorker) -> None:
        self._telling.discard(worker.name)
        self._router.reported(worker.name, worker.report())

    def _publish(self, worker: VirtualWorker) -> None:
        self._publishing.discard(worker.name)
        events = self.models[worker.name].held.changes()
        self._index.take(prefix_cache_pb2.PublishRequest(worker_id=worker.name, events=events))

    def _shared(self, request: Request) -> Shared:
        return self._known.shared(request.prompt, ASSET, "")

    # --- those who ask

    def play(self) -> None:
        """Until all is answered."""
        self.clock.follow(((_HOP_S * number, number) for number in range(self._at_once)), self._ask)

    def _ask(self, _: int) -> None:
        number = next(self._left, None)
        if number is not None:
            prompt, now_s = canonical_tokens(self._prompts[number]), self.clock.now_s
            due_s, level = now_s + _DEADLINE_S, service_level(exact="100%")
            self._router.take(Request(number, self._any, number, level, "normal", "", now_s, due_s, prompt))

    def _over(self, request: Request, what: Rung | HeadwayError, admitted: bool) -> None:
        if isinstance(what, HeadwayError):
            raise RuntimeError(f"question {request.key} has no answer: {what.message}")
        self.taken_s.append(self.clock.now_s - request.at_s)
        self.clock.at(self.clock.now_s + self._rest_s, self._ask, request.key)


def documents(mesh: Mesh, *, at_once: int, rest_s: float = 0.0, count: int = 480, seed: int = 1) -> Figures:
    """Asks `count` questions, so many at once, each of those who ask resting after an answer. Deterministic.

    Raises RuntimeError where one is refused: deadlines are long, so that placement alone makes the difference.
    """
    loop = _Loop(mesh, at_once=at_once, rest_s=rest_s, count=count, seed=seed)
    loop.play()
    models = loop.models.values()
    return Figures(
        answers_per_s=count / loop.clock.now_s,
        reused_share=sum(model.reused for model in models) / (count * mesh.asked.tokens),
        mean_s=sum(loop.taken_s) / count,
        shares=tuple(model.served / count for model in models),
    )
