"""What every worker has in common: the `Worker` service, tickets, metrics and traces of its engine loop."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc

from headway import __version__, answer_trailers
from headway.config import WorkerConfig
from headway.deadline import Budget, budget_of, is_promised
from headway.engine import Batch, Lease, Snapshot
from headway.engine_loop import EngineLoop
from headway.errors import BadInput, HeadwayError, NotFound
from headway.load_report import occupancy_of
from headway.planning import Setting, predict
from headway.policy import DEFAULT, Policy, policy_of
from headway.quality import Ladder, Rung, read_wish
from headway.server import Registration, Served, Service, StartError, tenant_of_call
from headway.telemetry import Answer, Span
from headway.ticket import Finished, Ticket
from headway.v1 import common_pb2, worker_pb2, worker_pb2_grpc

log = logging.getLogger(__name__)

_MOST_LOADS = 64
_DEFAULT_INTERVAL_S = 0.05
_MOST_INTERVAL_S = 10.0
_HEARTBEAT_S = 0.25


@dataclass(frozen=True, slots=True)
class LoadedAsset:
    """One model or scene that a worker has loaded."""

    name: str
    hash: str
    ladder: Ladder


@dataclass(frozen=True, slots=True)
class Identity:
    """What a worker is; constant between two starts, but for its assets."""

    worker_id: str
    kind: common_pb2.Kind
    engine: str
    device: str
    device_id: str
    precision: str
    threads: int
    assets: tuple[LoadedAsset, ...]

    @property
    def kind_name(self) -> str:
        """As metrics carry it: text, image or splat."""
        return common_pb2.Kind.Name(self.kind).removeprefix("KIND_").lower()

    def find(self, field: str, name: str) -> LoadedAsset:
        """The asset with this name or hash; the first when `name` is empty. Raises `NotFound`."""
        for asset in self.assets:
            if name in ("", asset.name, asset.hash):
                return asset
        raise NotFound(field, name, [asset.name for asset in self.assets])


class LoopObserver:
    """Counts what the engine loop does."""

    def __init__(self, service: Service, kind: str, max_batch: int) -> None:
        self._metrics, self._kind, self._max_batch = service.metrics, kind, max_batch
        self._load = service.load

    def stepped(self, batch: Batch[Any], actual_ms: float, queued: int, lease: Lease) -> None:
        self._metrics.lease_wait.labels(self._kind).observe(lease.wait_s)
        if not lease.granted:
            self._metrics.unleased.labels(self._kind).inc()
        self._metrics.step.labels(self._kind).observe(actual_ms / 1000)
        self._load.worked(actual_ms / 1000)
        self._metrics.occupancy.labels(self._kind).set(batch.items / self._max_batch)
        self._metrics.queued.labels(self._kind).set(queued)

    def finished(self, ticket: Ticket, now_s: float) -> None:
        actual_s = now_s - ticket.admitted_s
        self._metrics.finish_error.labels(self._kind).observe(actual_s - ticket.predicted.mean_ms / 1000)


def worker_policy(config: WorkerConfig, ladders: Sequence[Ladder]) -> Policy:
    """The policy that the configuration names; says so in the log unless it is Headway's. Raises `StartError`."""
    try:
        policy = policy_of(config.policy, ladders)
    except ValueError as error:
        raise StartError(f"policy: {error}") from error
    if policy.name != DEFAULT:
        log.warning("rungs are decided by the policy %s, and not by Headway's planner", policy.name)
    return policy


class WorkerRuntime:
    """What a worker's servicer works with: budgets, tickets, the engine loop, and the record of each answer."""

    def __init__(
        self,
        service: Service,
        config: WorkerConfig,
        identity: Identity,
        loop: EngineLoop[Any],
        complete_state: Callable[[worker_pb2.WorkerState, Setting], None] = lambda state, setting: None,
    ) -> None:
        """`complete_state` adds what only this kind of worker knows to a state before it is sent.

        It is told the setting of the same moment.
        """
        self.service, self.config, self.identity, self.loop = service, config, identity, loop
        self.complete_state = complete_state
        self.assets_version = 0
        """Counts the changes of the identity's assets; who watches the worker describes it again when it grows."""

    def replace_assets(self, assets: Sequence[LoadedAsset]) -> None:
        """From now on these can be asked for; on the event loop."""
        self.identity = replace(self.identity, assets=tuple(assets))
        self.assets_version += 1

    def budget(self, context: Any) -> Budget:
        """The budget of a call; take it on the handler's first line. Raises `Expired`."""
        budget = budget_of(
            context,
            max_deadline_s=self.config.max_deadline_s,
            reserve_s=self.config.return_reserve_ms / 1000,
            clock=self.service.clock,
        )
        return replace(budget, promised=True) if is_promised(context) else budget

    def ticket(self, budget: Budget, level: common_pb2.ServiceLevel, ladder: Ladder) -> Ticket:
        """A ticket for a request, its service level checked. Raises `BadInput` and `NoSuchRung`."""
        wish = read_wish(level, ladder, self.identity.kind)
        target_s = wish.target_s if wish.target_s is not None else self.config.default_target_s
        return Ticket(budget, wish, min(budget.due_s, budget.arrival_s + target_s))

    async def events(self, work: Any) -> AsyncGenerator[Any, None]:
        """Admits `work`, then yields its plan, then the engine's events; the last is `Finished`.

        Raises the refusal, or the error that ended it. Leaving early cancels the work within one step.
        """
        ticket: Ticket = work.ticket
        async with self.loop.submit(work):
            assert ticket.plan is not None
            ticket.plan.worker_id = self.identity.worker_id
            yield ticket.plan
            while True:
                event = await ticket.events.get()
                if isinstance(event, HeadwayError):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return

    def served(
        self, ticket: Ticket, asset: LoadedAsset, *, rung: Rung | None = None, quality: float | None = None
    ) -> common_pb2.Served:
        """What was served, for the final message and the trailers; counts the answer and traces its stages.

        `rung` and `quality` where they are not the planned ones.
        """
        now_s = self.service.clock()
        served = ticket.served(
            now_s, worker_id=self.identity.worker_id, asset_hash=asset.hash, rung=rung, quality=quality
        )
        reason = common_pb2.RungReason.Name(served.reason).removeprefix("RUNG_REASON_").lower()
        self.service.metrics.record_answer(
            self.identity.kind_name,
            Answer(
                served.rung.label,
                reason,
                served.quality,
                served.slack_ms / 1000,
                ticket.target_s - now_s,
                ticket.wish.priority,
                tenant_of_call.get(),
            ),
        )
        self._trace(ticket, served)
        answer_trailers.tell(served)
        return served

    def _trace(self, ticket: Ticket, served: common_pb2.Served) -> None:
        tracing = self.service.tracing
        tracing.note(rung=served.rung.label, slack_ms=served.slack_ms, worker=served.worker_id)
        for stage in ticket.stages:
            tracing.record(_STAGE_SPANS.get(stage.name, Span.WORKER_STEP), None, stage.start_s, stage.end_s)


def registrations(runtime: WorkerRuntime, name: str, add: Callable[[grpc.aio.Server], None]) -> Served:
    """What a worker's `build` returns: its own service beside `headway.v1.Worker`, drained by its engine loop."""

    runtime.service.authenticator.worker_id = runtime.identity.worker_id
    servicer = WorkerServicer(runtime)
    runtime.service.load.occupancy = lambda: occupancy_of(servicer.state(runtime.loop.snapshot()))

    def add_worker(server: grpc.aio.Server) -> None:
        worker_pb2_grpc.add_WorkerServicer_to_server(servicer, server)

    return Served([Registration(name, add), Registration("headway.v1.Worker", add_worker)], drain=runtime.loop.drain)


_STAGE_SPANS = {"queue": Span.WORKER_QUEUE, "prefill": Span.WORKER_PREFILL, "encode": Span.WORKER_ENCODE}


class WorkerServicer(worker_pb2_grpc.WorkerServicer):
    """`headway.v1.Worker` over an engine loop."""

    def __init__(self, runtime: WorkerRuntime) -> None:
        self._runtime = runtime

    async def Describe(self, request: worker_pb2.DescribeRequest, context: Any) -> worker_pb2.DescribeResponse:
        identity = self._runtime.identity
        return worker_pb2.DescribeResponse(
            worker_id=identity.worker_id,
            kind=identity.kind,
            assets=[
                worker_pb2.Asset(name=asset.name, hash=asset.hash, ladder=asset.ladder.to_proto())
                for asset in identity.assets
            ],
            engine=identity.engine,
            device=identity.device,
            device_id=identity.device_id,
            precision=identity.precision,
            version=__version__,
            threads=identity.threads,
            policy=self._runtime.loop.policy.name,
            assets_version=self._runtime.assets_version,
        )

    async def Watch(
        self, request: worker_pb2.WatchWorkerRequest, context: Any
    ) -> AsyncIterator[worker_pb2.WorkerState]:
        interval_s = request.min_interval.ToMilliseconds() / 1000 or _DEFAULT_INTERVAL_S
        if not 0 < interval_s <= _MOST_INTERVAL_S:
            raise BadInput("min_interval", f"must be above 0 and at most {_MOST_INTERVAL_S:g} s, not {interval_s:g} s")
        sequence = 0
        async for snapshot in snapshots(self._runtime.loop, interval_s):
            sequence += 1
            yield self.state(snapshot, sequence)

    async def Drain(self, request: worker_pb2.DrainRequest, context: Any) -> worker_pb2.DrainResponse:
        return worker_pb2.DrainResponse(finished=await self._runtime.loop.drain())

    def state(self, snapshot: Snapshot, sequence: int = 0) -> worker_pb2.WorkerState:
        """A snapshot as the contract has it; `sequence` numbers the reports of one watcher."""
        identity, setting = self._runtime.identity, snapshot.setting
        loads = [choice.option.load for choice in snapshot.choices]
        finish = predict(loads, setting)
        state = worker_pb2.WorkerState(
            worker_id=identity.worker_id,
            sequence=sequence,
            step_costs=setting.curve.scaled(setting.scale).to_proto(identity.assets[0].hash if identity.assets else ""),
            loads=_loads(snapshot),
            in_flight=snapshot.in_flight,
            device_id=identity.device_id,
            draining=snapshot.draining,
            backlog_ms=max((cost.mean_ms for cost in finish), default=0.0),
            max_batch=setting.max_batch,
            assets_version=self._runtime.assets_version,
        )
        self._runtime.complete_state(state, setting)
        return state


async def snapshots(
    loop: EngineLoop[Any], interval_s: float, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> AsyncIterator[Snapshot]:
    """The state now, then after every change, at most every `interval_s` and at least every heartbeat.

    Where the same work only went on, which is what every watcher expects, the next report comes an interval later.
    """
    while True:
        changed, told = loop.changes(), loop.snapshot()
        yield told
        await sleep(interval_s)
        if changed.is_set():
            if _admitted(loop.snapshot()) == _admitted(told):
                await sleep(interval_s)
            continue
        waiting = asyncio.ensure_future(changed.wait())
        await asyncio.wait([waiting], timeout=_HEARTBEAT_S)
        waiting.cancel()


def _admitted(snapshot: Snapshot) -> tuple[bool, set[int]]:
    """What of a state nobody can foresee: whose work there is, and whether it is the last."""
    return snapshot.draining, {choice.job.key for choice in snapshot.choices}


def _loads(snapshot: Snapshot) -> list[worker_pb2.Load]:
    """The admitted loads by deadline; those beyond the limit are added to the last one as device time."""
    rows = [_load(snapshot, index) for index in range(min(len(snapshot.choices), _MOST_LOADS))]
    rest = [choice.option.load for choice in snapshot.choices[_MOST_LOADS:]]
    if rest:
        cost = predict(rest, snapshot.setting)[-1]
        rows[-1].setup_mean_ms += cost.mean_ms
        rows[-1].setup_var_ms2 += cost.var_ms2
    return rows


def _load(snapshot: Snapshot, index: int) -> worker_pb2.Load:
    choice = snapshot.choices[index]
    load = choice.option.load
    setup = load.setup.scaled(snapshot.setting.scale)
    return worker_pb2.Load(
        due_in_ms=(load.due_s - snapshot.now_s) * 1000,
        items=load.items,
        steps_left=load.steps_left,
        setup_mean_ms=setup.mean_ms,
        setup_var_ms2=setup.var_ms2,
        priority=common_pb2.Priority.Name(choice.job.priority),
    )
