"""Who decides rungs and order in an engine loop: Headway's planner, or one of the policies it is measured against.

All share the batching of the workers, the order by deadline and the feasibility check of `headway.planning`; they
differ in the rungs alone, and `fifo` in order and batching too, because that is what it is. Under overload `headway`
also refuses what would take the time of others who bring more for it: see `headway.demand`.

| name | rungs | order |
|---|---|---|
| `headway` | as `greedy`, with their share left to those who are expected | deadline |
| `greedy` | the best with which every admitted request keeps its target; planned anew after every step | deadline |
| `fixed:RUNG` | always this one: a label, or else a place on the ladder counted from 0, the best | deadline |
| `lowest` | always the lowest that the caller allows | deadline |
| `threshold[:ANSWERS]` | one for all new requests, lower while the answers' p95 is over 85 % of target | deadline |
| `fifo[:RUNG]` | always this one, by default the best | arrival; a batch ends before the next begins |

A caller's floor or exact rung binds every policy. But for `check`, a policy is used under the engine loop's lock.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile
from typing import Protocol

from headway.cost import Cost, predict_finish
from headway.demand import Demand
from headway.planning import (
    Choice,
    Job,
    QueuePlan,
    Setting,
    admit,
    at_present,
    check,
    check_budget,
    join,
    late_ms,
    plan_queue,
    reason_of,
    shed,
)
from headway.quality import Ladder, Wish
from headway.v1 import common_pb2

DEFAULT = "headway"
_THRESHOLD = 0.85
_ANSWERS = 20
_ANSWERS_WANTED = re.compile(r"[1-9][0-9]{0,3}")
_INDEX = re.compile(r"[0-9]{1,4}")


class Policy(Protocol):
    """Rungs and order for all that is admitted."""

    name: str

    def plan(self, jobs: Sequence[Job], setting: Setting) -> QueuePlan:
        """What everything admitted is to get now, in the order in which the engine prefers it."""

    def check(self, admitted: Sequence[Job], job: Job, setting: Setting, *, reserve_ms: float) -> None:
        """Raises the refusal that `admit` would begin with. The one method that is called without the lock."""

    def admit(self, admitted: Sequence[Job], job: Job, setting: Setting, *, reserve_ms: float) -> QueuePlan:
        """The plan with `job` in it, or a refusal (`BudgetTooSmall`, `Shed`) that changes nothing."""

    def join(self, admitted: Sequence[Job], job: Job, setting: Setting, *, reserve_ms: float) -> QueuePlan:
        """As `admit`, of a job that room was kept for: what it gets now; of the others there may be nothing."""

    def ready(self, plan: QueuePlan, setting: Setting) -> Sequence[int]:
        """Keys of what may go into the next step, most preferred first."""

    def reason(self, choice: Choice, setting: Setting, wish: Wish) -> common_pb2.RungReason:
        """Why a request that was just admitted gets this rung."""

    def ended(self, share_of_target: float) -> None:
        """Is told of every answer: the time it took over the time it was wanted in. Mutates policies that learn."""


class Greedy:
    """The best for those who are there: see `headway.planning`."""

    name = "greedy"

    def plan(self, jobs: Sequence[Job], setting: Setting) -> QueuePlan:
        return plan_queue(jobs, setting)

    def check(self, admitted: Sequence[Job], job: Job, setting: Setting, *, reserve_ms: float) -> None:
        check(admitted, job, setting, reserve_ms=reserve_ms)

    def admit(self, admitted: Sequence[Job], job: Job, setting: Setting, *, reserve_ms: float) -> QueuePlan:
        return admit(admitted, job, setting, reserve_ms=reserve_ms)

    def join(self, admitted: Sequence[Job], job: Job, setting: Setting, *, reserve_ms: float) -> QueuePlan:
        return join(admitted, job, setting)

    def ready(self, plan: QueuePlan, setting: Setting) -> Sequence[int]:
        return tuple(plan)

    def reason(self, choice: Choice, setting: Setting, wish: Wish) -> common_pb2.RungReason:
        return reason_of(choice.job, choice.level, setting, exact=wish.exact, floored=wish.floored)

    def ended(self, share_of_target: float) -> None: ...


class Planned(Greedy):
    """Headway's own: the best for those who are there and those who are expected. See `headway.demand`."""

    name = DEFAULT

    def __init__(self) -> None:
        self._demand = Demand()

    def plan(self, jobs: Sequence[Job], setting: Setting) -> QueuePlan:
        return _with_all_rungs(plan_queue(self._demand.affordable(jobs, setting), setting), jobs)

    def check(self, admitted: Sequence[Job], job: Job, setting: Setting, *, reserve_ms: float) -> None:
        self._demand.arrived(job, setting)
        check(admitted, job, setting, reserve_ms=reserve_ms)
        if not self._demand.worth_keeping(admitted, job, setting):
            raise shed(admitted, job, setting, "others who are expected bring more for the time it needs")

    def admit(self, admitted: Sequence[Job], job: Job, setting: Setting, *, reserve_ms: float) -> QueuePlan:
        jobs = [*admitted, job]
        *others, new = self._demand.affordable(jobs, setting)
        return _with_all_rungs(admit(others, new, setting, reserve_ms=reserve_ms), jobs)


def _with_all_rungs(plan: QueuePlan, jobs: Sequence[Job]) -> QueuePlan:
    """A plan that was made without some jobs' best rungs, as one of the jobs as they are."""
    return {**plan, **{job.key: _with_all(plan[job.key], job) for job in jobs if plan[job.key].job is not job}}


def _with_all(choice: Choice, job: Job) -> Choice:
    return replace(choice, job=job, level=choice.level + len(job.options) - len(choice.job.options))


@dataclass(frozen=True, slots=True)
class Place:
    """A rung that is the same for all: by label, or by its place from the top where it has no label here.

    A caller whose floor is higher gets its floor. A place beyond the last rung means the last.
    """

    label: str | None
    index: int | None

    def pin(self, job: Job) -> Job:
        """The job with this rung alone; rungs that a request in flight has left behind are gone from the end."""
        named = [option for option in job.options if option.rung.label == self.label]
        if named:
            return replace(job, options=(named[-1],))
        last = len(job.options) - 1
        return replace(job, options=(job.options[last if self.index is None else min(self.index, last)],))


TOP, LOWEST = Place(None, 0), Place(None, None)
OWN: Mapping[str, Callable[[], Greedy]] = {Planned.name: Planned, Greedy.name: Greedy}


class Fixed(Greedy):
    """Every request at one rung."""

    def __init__(self, name: str, place: Place) -> None:
        self.name, self._place = name, place

    def plan(self, jobs: Sequence[Job], setting: Setting) -> QueuePlan:
        return plan_queue([self._place.pin(job) for job in jobs], setting)

    def check(self, admitted: Sequence[Job], job: Job, setting: Setting, *, reserve_ms: float) -> None:
        pinned = [self._place.pin(other) for other in admitted]
        check(pinned, self._place.pin(job), setting, reserve_ms=reserve_ms)

    def admit(self, admitted: Sequence[Job], job: Job, setting: Setting, *, reserve_ms: float) -> QueuePlan:
        pinned = [self._place.pin(other) for other in admitted]
        return admit(pinned, self._place.pin(job), setting, reserve_ms=reserve_ms)

    def join(self, admitted: Sequence[Job], job: Job, setting: Setting, *, reserve_ms: float) -> QueuePlan:
        return self.admit(admitted, job, setting, reserve_ms=reserve_ms)

    def reason(self, choice: Choice, setting: Setting, wish: Wish) -> common_pb2.RungReason:
        return _reason(wish)


class Threshold(Greedy):
    """One rung for all new requests, a rung lower while answers come close to their targets: no plan, a thermostat.

    It looks at the last `answers` answers since it last changed the rung: down when their p95 took over 85 % of the
    time they were wanted in, up when not. A request keeps the rung that it began with. cloud-inference-platform does
    this with one p95 in milliseconds for all; here each answer is held to its own target.
    """

    def __init__(self, name: str, answers: int, rungs: int) -> None:
        self.name, self._lowest = name, rungs - 1
        self._shares: deque[float] = deque(maxlen=answers)
        self._level = 0
        self._places: dict[int, Place] = {}  # by job key

    def plan(self, jobs: Sequence[Job], setting: Setting) -> QueuePlan:
        self._places = {job.key: self._places[job.key] for job in jobs}
        return plan_queue([self._places[job.key].pin(job) for job in jobs], setting)

    def check(self, admitted: Sequence[Job], job: Job, setting: Setting, *, reserve_ms: float) -> None:
        check(admitted, Place(None, self._level).pin(job), setting, reserve_ms=reserve_ms)

    def admit(self, admitted: Sequence[Job], job: Job, setting: Setting, *, reserve_ms: float) -> QueuePlan:
        place = Place(None, self._level)
        pinned = [self._places[other.key].pin(other) for other in admitted]
        plan = admit(pinned, place.pin(job), setting, reserve_ms=reserve_ms)
        self._places[job.key] = place
        return plan

    def join(self, admitted: Sequence[Job], job: Job, setting: Setting, *, reserve_ms: float) -> QueuePlan:
        return self.admit(admitted, job, setting, reserve_ms=reserve_ms)

    def reason(self, choice: Choice, setting: Setting, wish: Wish) -> common_pb2.RungReason:
        return _reason(wish)

    def ended(self, share_of_target: float) -> None:
        self._shares.append(share_of_target)
        if len(self._shares) < (self._shares.maxlen or 1):
            return
        p95 = sorted(self._shares)[int(0.95 * (len(self._shares) - 1) + 0.5)]
        level = self._level + 1 if p95 > _THRESHOLD else self._level - 1
        if 0 <= level <= self._lowest:
            self._level = level
            self._shares.clear()


class Fifo(Greedy):
    """Request-level batching: what has come is batched, and the batch runs to its end before the next is put together.

    Nobody joins in flight, nobody overtakes, rungs stay as they are.
    """

    def __init__(self, name: str, place: Place) -> None:
        self.name, self._place = name, place
        self._running: frozenset[int] = frozenset()

    def plan(self, jobs: Sequence[Job], setting: Setting) -> QueuePlan:
        order = sorted((self._place.pin(job) for job in jobs), key=_arrival)
        finish = self._finish(order, setting)
        return {job.key: Choice(job, 0, cost) for job, cost in zip(order, finish, strict=True)}

    def check(self, admitted: Sequence[Job], job: Job, setting: Setting, *, reserve_ms: float) -> None:
        pinned = self._place.pin(job)
        check_budget(pinned, setting, reserve_ms=reserve_ms)
        late = _late(self.plan([*admitted, job], setting).values(), setting)
        broken = late and late - _late(self.plan(admitted, setting).values(), setting)
        if broken:
            why = "it" if job.key in broken else f"{len(broken)} admitted requests"
            raise shed([self._place.pin(other) for other in admitted], pinned, setting, f"{why} would be late")

    def admit(self, admitted: Sequence[Job], job: Job, setting: Setting, *, reserve_ms: float) -> QueuePlan:
        self.check(admitted, job, setting, reserve_ms=reserve_ms)
        return self.plan([*admitted, job], setting)

    def join(self, admitted: Sequence[Job], job: Job, setting: Setting, *, reserve_ms: float) -> QueuePlan:
        return self.admit(admitted, job, setting, reserve_ms=reserve_ms)

    def ready(self, plan: QueuePlan, setting: Setting) -> Sequence[int]:
        running = [key for key in plan if key in self._running]
        if not running:
            running = [job.key for job in _batch([choice.job for choice in plan.values()], setting)]
            self._running = frozenset(running)
        return running

    def reason(self, choice: Choice, setting: Setting, wish: Wish) -> common_pb2.RungReason:
        return _reason(wish)

    def _finish(self, order: Sequence[Job], setting: Setting) -> list[Cost]:
        """One batch after another, the one that runs first."""
        waiting = [job for job in order if job.key not in self._running]
        batch: Sequence[Job] = [job for job in order if job.key in self._running]
        before, finish = Cost(0.0), dict[int, Cost]()
        while batch or waiting:
            if not batch:
                batch = _batch(waiting, setting)
                waiting = waiting[len(batch) :]
            own = predict_finish([job.options[0].load for job in batch], setting.curve, setting.max_batch)
            finish |= {job.key: before + cost for job, cost in zip(batch, own, strict=True)}
            before += max(own, key=_mean_ms)
            batch = []
        return [at_present(finish[job.key], job.due_s, setting) for job in order]


def policy_of(name: str, ladders: Sequence[Ladder]) -> Policy:
    """The policy of this name over a worker's ladders.

    Raises ValueError for a name that is none, and for a rung that is no label of every ladder and no place on one.
    """
    kind, _, rest = name.partition(":")
    if kind == "fixed" and rest:
        return Fixed(name, _place(rest, ladders))
    if kind == "fifo":
        return Fifo(name, _place(rest, ladders) if rest else TOP)
    if kind == "threshold" and _ANSWERS_WANTED.fullmatch(rest or str(_ANSWERS)):
        return Threshold(name, int(rest or _ANSWERS), max(len(ladder.rungs) for ladder in ladders))
    if name == "lowest":
        return Fixed(name, LOWEST)
    if name in OWN:
        return OWN[name]()
    raise ValueError(
        f"no policy {name!r}; there are {', '.join(OWN)}, lowest, fixed:RUNG, threshold[:ANSWERS], fifo[:RUNG]"
    )


def _place(rung: str, ladders: Sequence[Ladder]) -> Place:
    labels = [{each.label for each in ladder.rungs} for ladder in ladders]
    if all(rung in known for known in labels):
        return Place(rung, None)
    longest = max(len(known) for known in labels)
    if _INDEX.fullmatch(rung) and int(rung) < longest and not any(rung in known for known in labels):
        return Place(None, int(rung))
    known = "; ".join(", ".join(each.label for each in ladder.rungs) for ladder in ladders)
    raise ValueError(f"no rung {rung!r} on every ladder, and no such place on one: {known}")


def _batch(order: Sequence[Job], setting: Setting) -> Sequence[Job]:
    """The longest run from the front that fits in one step; one that is larger goes alone."""
    totals = accumulate(job.options[0].load.items for job in order)
    return order[: max(1, len(list(takewhile(lambda total: total <= setting.max_batch, totals))))]


def _late(choices: Iterable[Choice], setting: Setting) -> set[int]:
    quantile = setting.admission_quantile
    return {
        choice.job.key for choice in choices if late_ms(choice.job.due_s, choice.finish, setting, quantile) > 0
    }  # fmt: skip


def _reason(wish: Wish) -> common_pb2.RungReason:
    return common_pb2.RUNG_REASON_EXACT if wish.exact else common_pb2.RUNG_REASON_POLICY


def _arrival(job: Job) -> int:
    return job.key


def _mean_ms(cost: Cost) -> float:
    return cost.mean_ms
