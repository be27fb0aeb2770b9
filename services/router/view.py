"""One worker as placement sees it: what it has, what it has admitted, what its steps cost. Immutable."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from headway.cost import ZERO, Cost, Load, StepCurve, predict_finish
from headway.policy import DEFAULT
from headway.quality import Ladder, Rung
from headway.v1 import common_pb2, worker_pb2

_NO_STEPS = StepCurve(((1, ZERO),))


class BadReport(ValueError):
    """A worker's description or state contradicts itself or its configuration."""


@dataclass(frozen=True, slots=True)
class Asset:
    """One model or scene of a worker."""

    name: str
    hash: str
    ladder: Ladder


@dataclass(frozen=True, slots=True)
class Description:
    """What a worker is, from `Describe`."""

    worker_id: str
    kind: common_pb2.Kind
    device_id: str
    engine: str
    """Engine, device and precision, for people; and the policy, unless it is Headway's."""
    assets: tuple[Asset, ...]
    assets_version: int = 0
    """Another one in the worker's reports says that its assets have changed."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker has to do and what that costs, from `Watch`; times are monotonic seconds here."""

    received_s: float
    loads: tuple[Load, ...]
    """By deadline."""
    curves: Mapping[tuple[str, str], StepCurve]
    """By asset hash and rung label; the label is empty where all rungs' steps cost the same."""
    max_batch: int
    prefill_token_ms: float
    in_flight: int
    backlog_ms: float
    draining: bool
    kept_kv_ms: float | None = None
    """How long what nobody uses stays in its KV cache; None while all does."""

    def curve(self, asset_hash: str, label: str) -> StepCurve:
        """The costs of a step for this asset and rung, or the nearest that the worker reports."""
        for key in ((asset_hash, label), (asset_hash, ""), ("", label), ("", "")):
            if key in self.curves:
                return self.curves[key]
        return self.general

    @property
    def general(self) -> StepCurve:
        """The costs of a step of whatever the worker does."""
        unlabelled = (curve for (_, label), curve in self.curves.items() if not label)
        return next(unlabelled, next(iter(self.curves.values()), _NO_STEPS))


@dataclass(frozen=True)
class View:
    """A healthy worker at one time."""

    address: str
    description: Description
    report: Report
    loads: tuple[Load, ...]
    """The report's and what was sent since, by deadline."""
    in_flight: int

    @cached_property
    def demand(self) -> tuple[tuple[float, float], ...]:
        """Device work by deadline: (due, monotonic s; ms); foreign work to others on the device.

        Played when it is asked for: where every worker has a device of its own, it never is.
        """
        return _demand(self.loads, self.report)

    def asset(self, name: str) -> Asset | None:
        """The asset of this name or hash; the first when `name` is empty."""
        return next((asset for asset in self.description.assets if name in ("", asset.name, asset.hash)), None)


def read_description(message: worker_pb2.DescribeResponse, kind: common_pb2.Kind) -> Description:
    """Raises `BadReport` when it is of another kind than configured, or its ladders are no ladders."""
    if message.kind != kind:
        said, wanted = (common_pb2.Kind.Name(value).removeprefix("KIND_").lower() for value in (message.kind, kind))
        raise BadReport(f"it is a worker for {said}, not for {wanted}")
    try:
        assets = tuple(Asset(asset.name, asset.hash, _ladder(asset.ladder)) for asset in message.assets)
    except ValueError as error:
        raise BadReport(f"its ladders are wrong: {error}") from error
    engine = f"{message.engine}, {message.device}, {message.precision}"
    if message.policy not in ("", DEFAULT):
        engine += f", policy {message.policy}"
    return Description(message.worker_id, message.kind, message.device_id, engine, assets, message.assets_version)


def check_report(message: worker_pb2.WorkerState) -> None:
    """Raises `BadReport` for costs that are no costs. Quick: most reports are never read, see `Ledger.heard`."""
    _number("prefill_token_ms", message.prefill_token_ms)
    _number("kept_kv_ms", message.kept_kv_ms)
    for load in message.loads:
        if not (0 <= load.setup_mean_ms < math.inf and 0 <= load.setup_var_ms2 < math.inf):
            raise BadReport(f"its setup costs {load.setup_mean_ms} ms, with a variance of {load.setup_var_ms2} ms2")
        if not -math.inf < load.due_in_ms < math.inf:
            raise BadReport(f"its due_in_ms is {load.due_in_ms}")
    for cost in message.step_costs:
        if not (0 <= cost.mean_ms < math.inf and 0 <= cost.var_ms2 < math.inf):
            raise BadReport(f"its step costs {cost.mean_ms} ms, with a variance of {cost.var_ms2} ms2")


def read_report(message: worker_pb2.WorkerState, received_s: float) -> Report:
    """A report that was checked."""
    loads = sorted((_load(load, received_s) for load in message.loads), key=_due_s)
    return Report(
        received_s=received_s,
        loads=tuple(loads),
        curves=_curves(message.step_costs),
        max_batch=max(1, message.max_batch),
        prefill_token_ms=message.prefill_token_ms,
        in_flight=message.in_flight,
        backlog_ms=message.backlog_ms,
        draining=message.draining,
        kept_kv_ms=message.kept_kv_ms if message.HasField("kept_kv_ms") else None,
    )


def make_view(address: str, description: Description, report: Report, sent: Sequence[Load]) -> View:
    """The worker with what was sent to it since its report."""
    loads = tuple(sorted((*report.loads, *sent), key=_due_s))
    in_flight = report.in_flight + len(sent)
    return View(address, description, report, loads, in_flight)


def _demand(loads: Sequence[Load], report: Report) -> tuple[tuple[float, float], ...]:
    rows, before_ms = [], 0.0
    for load, finish in zip(loads, predict_finish(loads, report.general, report.max_batch), strict=True):
        rows.append((load.due_s, max(0.0, finish.mean_ms - before_ms)))
        before_ms = max(before_ms, finish.mean_ms)
    return tuple(rows)


def _load(message: worker_pb2.Load, received_s: float) -> Load:
    setup = Cost(message.setup_mean_ms, message.setup_var_ms2)
    return Load(received_s + message.due_in_ms / 1000, max(1, message.items), message.steps_left, setup)


def _curves(costs: Iterable[worker_pb2.StepCost]) -> dict[tuple[str, str], StepCurve]:
    points: dict[tuple[str, str], dict[int, Cost]] = {}
    for cost in costs:
        value = Cost(cost.mean_ms, cost.var_ms2)
        points.setdefault((cost.asset_hash, cost.rung), {})[max(1, cost.batch)] = value
    return {key: StepCurve(tuple(sorted(sizes.items(), key=_first))) for key, sizes in points.items()}


def _ladder(message: common_pb2.Ladder) -> Ladder:
    return Ladder(tuple(_rung(rung) for rung in message.rungs))


def _rung(message: common_pb2.Rung) -> Rung:
    figure: dict[str, Any] = {}
    measure = message.WhichOneof("figure")
    if measure is not None:
        figure[measure] = getattr(message, measure)
    return Rung(message.label, message.quality, **figure)


def _number(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise BadReport(f"its {name} is {value}")
    return value


def _due_s(load: Load) -> float:
    return load.due_s


def _first(pair: tuple[int, Cost]) -> int:
    return pair[0]
