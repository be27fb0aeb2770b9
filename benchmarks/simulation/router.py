"""What a router does with a request: place, charge, ask, ask another. On virtual time."""

import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

import grpc

from benchmarks.simulation.clock import Clock
from benchmarks.simulation.models import Model
from benchmarks.simulation.worker import Call, VirtualWorker
from headway.deadline import Budget
from headway.errors import HeadwayError
from headway.quality import Rung
from headway.v1 import common_pb2
from services.router.forwarding import ASK_ANOTHER, MOST_ATTEMPTS, no_worker, soonest
from services.router.ledger import Ledger, Sent
from services.router.placement import Ask, Placement
from services.router.policies import Placer, read_policy
from services.router.pool import kind_name
from services.router.prefixes import NOTHING_SHARED, Shared
from services.router.quotas import Quotas, device_ms
from services.router.roster import Roster
from services.router.view import Report

RESERVE_S = 0.005
"""What a router keeps back to return an answer: `return_reserve_ms`."""
QUANTILE = 0.9


@dataclass(frozen=True, slots=True)
class Request:
    """What a client sends."""

    key: int
    model: Model
    items: int
    level: common_pb2.ServiceLevel
    priority: str
    tenant: str
    at_s: float
    deadline_s: float
    prompt: bytes


Known = Callable[[Request], Shared]
"""How much of a request's prompt is cached where."""
Over = Callable[[Request, Rung | HeadwayError, bool], None]
"""Is told once how a request ended, when its caller knows: its rung or its error, and whether it was admitted."""


def _nothing_known(request: Request) -> Shared:
    return NOTHING_SHARED


@dataclass(slots=True, eq=False)
class _Open:
    """A request on its way."""

    request: Request
    budget: Budget
    placements: list[Placement]
    charge: AbstractContextManager[None]
    asked: int = 0
    refusals: list[HeadwayError] = field(default_factory=list)


class VirtualRouter:
    """One router: its own books, its own turn and draw, its own quotas."""

    def __init__(
        self,
        policy: str,
        workers: Mapping[str, VirtualWorker],
        quotas: Quotas,
        *,
        clock: Clock,
        hop_s: float,
        interval_s: float,
        seed: int,
        over: Over,
        known: Known = _nothing_known,
    ) -> None:
        self._known = known
        self._clock, self._hop_s, self._over, self._workers, self._quotas = clock, hop_s, over, workers, quotas
        self._placer = Placer(read_policy(policy), quantile=QUANTILE, draw=random.Random(seed))
        self._ledgers = {name: self._ledger(worker, interval_s) for name, worker in workers.items()}
        self._roster = Roster(self._ledgers.values())
        self.placing_s = 0.0
        """CPU time of this host that placing took, real and not virtual."""

    def _ledger(self, worker: VirtualWorker, interval_s: float) -> Ledger:
        ledger = Ledger(
            worker.name, self._clock, changed=lambda: None, may_leave=lambda: False, interval_s=interval_s
        )  # fmt: skip
        ledger.described(worker.description)
        ledger.reported(worker.report())
        return ledger

    def reported(self, name: str, report: Report) -> None:
        """A worker's report has come."""
        self._ledgers[name].reported(report)

    def take(self, request: Request) -> None:
        """A request has come; `over` will be told of its end."""
        now_s = self._clock.now_s
        budget = Budget(now_s, request.deadline_s, RESERVE_S)
        try:
            budget.check(now_s)
            placements = self._place(request, budget)
            charge = self._charged(request, placements)
        except HeadwayError as error:
            self._over(request, error, False)
            return
        self._ask(_Open(request, budget, placements, charge))

    def _place(self, request: Request, budget: Budget) -> list[Placement]:
        model = request.model
        ask = Ask(
            model.kind, "asset", "", request.level, budget.arrival_s, budget.due_s,
            prompt=request.prompt, **model.sizes_of(request.items),
        )  # fmt: skip
        start_s = time.process_time()
        placements = self._placer.place(ask, self._roster, budget.arrival_s, shared=self._known(request))
        self.placing_s += time.process_time() - start_s
        if not placements:
            raise no_worker(kind_name(model.kind))
        return placements

    def _charged(self, request: Request, placements: list[Placement]) -> AbstractContextManager[None]:
        best = placements[0]
        charge = self._quotas.call(request.tenant, device_ms(best), best.finish.mean_ms / 1000)
        charge.__enter__()
        return charge

    # --- one worker after the other, as `Forwarder.messages`

    def _ask(self, call: _Open) -> None:
        now_s, placement = self._clock.now_s, call.placements[call.asked]
        call.asked += 1
        try:
            timeout_s = call.budget.onward_timeout_s(now_s)
        except HeadwayError as error:
            self._end(call, soonest(call.refusals) if call.refusals else error, admitted=False)
            return
        name = placement.view.address
        sent = self._ledgers[name].opened(placement.load)
        self._clock.at(now_s + self._hop_s, self._arrive, call, name, sent, now_s + timeout_s)

    def _arrive(self, call: _Open, name: str, sent: Sent, deadline_s: float) -> None:
        """At the worker."""
        request, back_s = call.request, self._clock.now_s + self._hop_s
        over = partial(self._answered, call, name, sent)
        try:
            self._workers[name].admit(Call(request.key, request.level, request.items, deadline_s, over))
            sent.admitted_s = back_s
        except HeadwayError as error:
            self._clock.at(back_s, self._refused, call, name, sent, error)

    def _refused(self, call: _Open, name: str, sent: Sent, error: HeadwayError) -> None:
        ledger = self._ledgers[name]
        ledger.failed(sent, error)
        ledger.closed(sent)
        if error.reason not in ASK_ANOTHER:
            late = call.refusals and error.status is grpc.StatusCode.DEADLINE_EXCEEDED
            self._end(call, soonest(call.refusals) if late else error, admitted=False)
            return
        call.refusals.append(error)
        if call.asked < min(MOST_ATTEMPTS, len(call.placements)):
            self._ask(call)
        else:
            self._end(call, soonest(call.refusals), admitted=False)

    def _answered(self, call: _Open, name: str, sent: Sent, what: Rung | HeadwayError) -> None:
        """The answer leaves the worker."""
        self._clock.at(self._clock.now_s + self._hop_s, self._take_answer, call, name, sent, what)

    def _take_answer(self, call: _Open, name: str, sent: Sent, what: Rung | HeadwayError) -> None:
        ledger = self._ledgers[name]
        if isinstance(what, HeadwayError):
            ledger.failed(sent, what)
        else:
            ledger.answered(sent)
        ledger.closed(sent)
        self._end(call, what, admitted=True)

    def _end(self, call: _Open, what: Rung | HeadwayError, *, admitted: bool) -> None:
        error = what if isinstance(what, HeadwayError) else None
        call.charge.__exit__(type(error) if error else None, error, None)
        self._over(call.request, what, admitted)
