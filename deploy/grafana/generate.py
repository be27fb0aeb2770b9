"""Writes Headway's Grafana dashboards: `python -m deploy.grafana.generate`; with `--check` says whether they are fresh.

Expressions name metrics through what `headway.telemetry` declares and rules through what the rule file records, so a
dashboard cannot show a name that does not exist: generating it fails instead.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from headway.telemetry import Metrics

HERE = Path(__file__).parent
FOLDER = HERE / "dashboards"
_RULES = yaml.safe_load((HERE.parent / "prometheus" / "headway.rules.yaml").read_text())
_RECORDED = {rule["record"] for group in _RULES["groups"] for rule in group["rules"]}
_METRICS = Metrics("dashboards", "0")
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_COLUMNS, _WIDTH, _HEIGHT = 3, 8, 8


def rule(name: str, **where: str) -> str:
    """A recorded series, `headway:` left out. Raises KeyError when no rule records it."""
    if (full := f"headway:{name}") not in _RECORDED:
        raise KeyError(full)
    return full + _selector(where)


def metric(attribute: str, suffix: str = "", **where: str) -> str:
    """A series of the metric that is this attribute of `Metrics`. Raises AttributeError when there is none."""
    return str(getattr(_METRICS, attribute).describe()[0].name) + suffix + _selector(where)


def _selector(where: dict[str, str]) -> str:
    return "{" + ", ".join(f'{label}=~"{value}"' for label, value in where.items()) + "}" if where else ""


def quantile(share: float, attribute: str, *, at_routers: bool = False, **where: str) -> str:
    """A quantile of a histogram over the dashboard's rate interval."""
    rate = f"rate({metric(attribute, '_bucket', **where)}[$__rate_interval])"
    if at_routers:  # else a request counts twice: at its router and at its worker
        rate += f" * on (job, instance) group_left {rule('routers:info')}"
    return f"histogram_quantile({share}, sum by (le) ({rate}))"


@dataclass(frozen=True)
class Panel:
    """One chart: `queries` are PromQL and the legend of each."""

    title: str
    about: str
    unit: str
    queries: Sequence[tuple[str, str]]
    stacked: bool = False
    most: float | None = None


@dataclass(frozen=True)
class Dashboard:
    """One page."""

    uid: str
    title: str
    panels: Sequence[Panel]
    variables: Sequence[tuple[str, str]] = field(default_factory=tuple)
    """Name of a label to choose by, and the series whose values it takes."""


def _overview() -> Dashboard:
    return Dashboard("headway-overview", "Headway: overview", [*_promise_panels(), *_load_panels(), *_mesh_panels()])


def _promise_panels() -> list[Panel]:
    by_deadline = "1 - " + rule("deadline_errors:ratio_rate5m")
    return [
        Panel("Answered by the deadline", "Of the requests that were taken; the promise is 99.9 %.", "percentunit",
              [(by_deadline, "{{kind}}")], most=1),
        Panel("Burn rate", "Multiples of the pace that spends the allowance of 1 in 1000 in 30 days.", "none",
              [(rule(f"deadline_errors:ratio_rate{window}") + " / 0.001", "{{kind}} " + window)
               for window in ("1h", "6h", "3d")]),
        Panel("Answered by the target", "By priority; high is promised 99 % in a spike.", "percentunit",
              [(rule("attainment_by_priority:ratio_rate30m", by="target"), "{{kind}} {{priority}}")], most=1),
    ]  # fmt: skip


def _load_panels() -> list[Panel]:
    requests = f"sum by (outcome) ({rule('requests:rate5m')})"
    return [
        Panel("Requests", "As callers see them: counted at routers.", "reqps",
              [(requests, "{{outcome}}")], stacked=True),
        Panel("Refusals by reason", "Before any work was done.", "reqps",
              [(rule("refusals:rate5m"), "{{kind}} {{reason}}")], stacked=True),
        Panel("Rungs", "Share of answers by rung: under load it shifts before anything is refused.", "percentunit",
              [(rule("rung_mix:ratio_rate5m"), "{{kind}} {{rung}}")]),
        Panel("Mean quality", "Normalised: 1 is the top rung.", "percentunit",
              [(rule("quality:mean_rate5m"), "{{kind}}")], most=1),
        Panel("Waiting for a step", "Admitted requests that no step works on.", "short",
              [(rule("queued_requests:sum"), "{{kind}}")]),
        Panel("Share of the device", "Seconds of device time a second.", "percentunit",
              [(rule("device_share:rate5m"), "{{kind}} {{instance}}")], stacked=True),
    ]  # fmt: skip


def _mesh_panels() -> list[Panel]:
    workers = f"max by (kind, state) ({metric('workers')})"
    return [
        Panel("Workers", "As the routers see them.", "short", [(workers, "{{kind}} {{state}}")]),
        Panel("Result cache", "Share of look-ups.", "percentunit",
              [(rule("result_cache_hits:ratio_rate5m"), "{{kind}} hit"),
               (rule("result_cache_errors:ratio_rate5m"), "{{kind}} error")], most=1),
        Panel("Event loop lag", "99th percentile; 5 ms is the limit.", "s",
              [(metric("loop_lag_p99"), "{{job}} {{instance}}")]),
    ]  # fmt: skip


def _worker_kind() -> Dashboard:
    kind = {"kind": "$kind"}
    occupancy = f"avg by (instance) ({metric('occupancy', **kind)})"
    panels = [
        Panel("Duration", "From arrival at a router to the end, of answered requests.", "s",
              [(quantile(share, "duration", at_routers=True, outcome="ok", **kind), f"p{share * 100:g}")
               for share in (0.5, 0.9, 0.99)]),
        Panel("Budget at arrival", "What callers give.", "s",
              [(quantile(share, "budget", **kind), f"p{share * 100:g}") for share in (0.1, 0.5, 0.9)]),
        Panel("Slack at the answer", "Time left until the deadline; below 0: late.", "s",
              [(quantile(share, "slack", **kind), f"p{share * 100:g}") for share in (0.001, 0.01, 0.5)]),
        Panel("Rungs", "Share of answers.", "percentunit", [(rule("rung_mix:ratio_rate5m", **kind), "{{rung}}")],
              stacked=True, most=1),
        Panel("Why these rungs", "Reasons of the answers' rungs.", "reqps",
              [(rule("rung_reasons:rate5m", **kind), "{{reason}}")], stacked=True),
        Panel("Late against the prediction", "Actual less predicted finish.", "s",
              [(quantile(share, "finish_error", **kind), f"p{share * 100:g}") for share in (0.5, 0.9, 0.99)]),
        Panel("A step", "Device time.", "s",
              [(quantile(share, "step", **kind), f"p{share * 100:g}") for share in (0.5, 0.99)]),
        Panel("Wait for the device", "For a lease of the arbiter.", "s",
              [(rule("device_lease_wait_seconds:p99_rate5m", **kind), "p99")]),
        Panel("Batch slots in use", "Share, by worker.", "percentunit", [(occupancy, "{{instance}}")], most=1),
        Panel("Share of the device", "By worker.", "percentunit",
              [(rule("device_share:rate5m", **kind), "{{instance}}")], stacked=True),
        Panel("Time to refuse", "95th percentile; workers are to stay under 5 ms.", "s",
              [(rule("refusal_seconds:p95_rate5m", **kind), "{{job}}")]),
        Panel("Tokens", "Text alone: to the first token, and between two.", "s",
              [(quantile(0.99, "first_token"), "first p99"), (quantile(0.99, "inter_token"), "next p99")]),
    ]  # fmt: skip
    return Dashboard("headway-kind", "Headway: one kind of worker", panels, [("kind", metric("step", "_count"))])


def _tenant() -> Dashboard:
    tenant = {"tenant": "$tenant"}
    requests = f"sum by (kind, outcome) ({rule('requests:rate5m', **tenant)})"
    answers = (
        f"sum by (kind, priority) (rate({metric('attained', '_total', by='deadline', **tenant)}[$__rate_interval]))"
    )
    panels = [
        Panel("Requests", "As the tenant sees them: counted at routers.", "reqps",
              [(requests, "{{kind}} {{outcome}}")], stacked=True),
        Panel("Answered by the deadline", "Of the answers, by priority.", "percentunit",
              [(rule("attainment:ratio_rate5m", by="deadline", **tenant), "{{kind}} {{priority}}")], most=1),
        Panel("Answered by the target", "Of the answers, by priority.", "percentunit",
              [(rule("attainment:ratio_rate5m", by="target", **tenant), "{{kind}} {{priority}}")], most=1),
        Panel("Answers by the deadline", "By priority.", "reqps", [(answers, "{{kind}} {{priority}}")], stacked=True),
        Panel("The last hour", "Answered by the deadline; an alert below 99 %.", "percentunit",
              [(rule("attainment_by_tenant:ratio_rate1h", by="deadline", **tenant), "{{kind}}")], most=1),
    ]  # fmt: skip
    return Dashboard("headway-tenant", "Headway: one tenant", panels, [("tenant", metric("requests", "_total"))])


def _panel(panel: Panel, number: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "custom": {"fillOpacity": 12, "showPoints": "never"}}
    if panel.stacked:
        defaults["custom"]["stacking"] = {"mode": "normal", "group": "A"}
    if panel.most is not None:
        defaults |= {"min": 0, "max": panel.most}
    targets = [
        {"refId": chr(ord("A") + index), "expr": expression, "legendFormat": legend, "datasource": _SOURCE}
        for index, (expression, legend) in enumerate(panel.queries)
    ]
    row, column = divmod(number, _COLUMNS)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": targets,
    }


def _variable(name: str, series: str) -> dict[str, Any]:
    query = f"label_values({series}, {name})"
    return {
        "name": name,
        "label": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "includeAll": False,
        "multi": False,
    }


def document(dashboard: Dashboard) -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    source = {"name": "source", "label": "source", "type": "datasource", "query": "prometheus", "refresh": 1}
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["headway"],
        "schemaVersion": 39,
        "editable": True,
        "timezone": "browser",
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source, *(_variable(*variable) for variable in dashboard.variables)]},
        "panels": [_panel(panel, number) for number, panel in enumerate(dashboard.panels)],
    }


def documents() -> dict[Path, str]:
    """What each file must hold."""
    made = (_overview(), _worker_kind(), _tenant())
    return {FOLDER / f"{one.uid}.json": json.dumps(document(one), indent=1) + "\n" for one in made}


def main() -> None:
    """Writes the files, or with `--check` leaves with 1 when one is not what it must be."""
    for path, text in documents().items():
        if "--check" not in sys.argv[1:]:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        elif not path.is_file() or path.read_text() != text:
            sys.exit(f"{path} is stale: python -m deploy.grafana.generate")


if __name__ == "__main__":
    main()
