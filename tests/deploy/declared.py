"""Every name that Prometheus can know of Headway: declared metrics with their labels, and recorded rules."""

import re
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.metrics import MetricWrapperBase

from headway.telemetry import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "headway.rules.yaml"
ALERTS = DEPLOY / "prometheus" / "headway.alerts.yaml"
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
SCRAPED = {"job", "instance", "le", "service"}
"""Labels that a scrape, a histogram or `build_info` adds."""

_NAME = re.compile(r"\bheadway[_:][a-z0-9_:]+")
_LABELS = re.compile(r"\b(?:by|on|ignoring) \(([^)]*)\)|\{([^{}]*)\}")


def declared() -> dict[str, set[str]]:
    """The labels of every series of a Headway process."""
    found: dict[str, set[str]] = {}
    for metric in vars(Metrics("test", "0")).values():
        if isinstance(metric, MetricWrapperBase):
            family = metric.describe()[0]
            for suffix in SUFFIXES[family.type]:
                found[family.name + suffix] = set(metric._labelnames)
    found["headway_build_info"] = {"service", "version"}
    return found


def rules(path: Path) -> list[dict[str, Any]]:
    """All rules of a file."""
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def recorded() -> set[str]:
    """The names that recording rules make."""
    return {rule["record"] for rule in rules(RULES)}


def names_in(expression: str) -> set[str]:
    """The Headway names in a PromQL expression."""
    return set(_NAME.findall(expression))


def labels_in(expression: str) -> set[str]:
    """The labels that a PromQL expression groups or selects by."""
    found: set[str] = set()
    for grouped, selected in _LABELS.findall(expression):
        found.update(part.strip() for part in grouped.split(",") if part.strip())
        found.update(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selected))
    return found
