"""The dashboards are what their generator writes, in the shape that Grafana reads, about names that exist."""

import json
import subprocess
import sys
from typing import Any

import pytest
from declared import DEPLOY, SCRAPED, declared, labels_in, names_in, recorded
from jsonschema import Draft202012Validator

FILES = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
_PANEL = {
    "type": "object",
    "required": ["id", "type", "title", "description", "datasource", "gridPos", "fieldConfig", "targets"],
    "properties": {
        "id": {"type": "integer", "minimum": 1},
        "type": {"const": "timeseries"},
        "title": {"type": "string", "minLength": 1},
        "gridPos": {
            "type": "object",
            "required": ["x", "y", "w", "h"],
            "properties": {"x": {"maximum": 23}, "w": {"minimum": 1, "maximum": 24}},
        },
        "targets": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "object", "required": ["refId", "expr", "legendFormat", "datasource"]},
        },
    },
}
# What Grafana's import reads of a dashboard; its own schema is not to be had as a file.
_DASHBOARD = {
    "type": "object",
    "required": ["uid", "title", "schemaVersion", "templating", "panels", "time"],
    "properties": {
        "uid": {"type": "string", "pattern": "^[a-z-]{1,40}$"},
        "schemaVersion": {"type": "integer", "minimum": 36},
        "panels": {"type": "array", "minItems": 1, "items": _PANEL},
    },
}


def _read(path: Any) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def test_the_files_are_what_the_generator_writes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.grafana.generate", "--check"], cwd=DEPLOY.parent,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [path.stem for path in FILES] == ["headway-kind", "headway-overview", "headway-tenant"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_dashboard_has_the_shape_that_grafana_reads(path: Any) -> None:
    dashboard = _read(path)
    Draft202012Validator(_DASHBOARD).validate(dashboard)
    spots = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(spots)) == len(spots)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(spots)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_dashboard_asks_for_names_labels_and_variables_that_exist(path: Any) -> None:
    dashboard = _read(path)
    chosen = {variable["name"] for variable in dashboard["templating"]["list"]}
    every_label = set().union(*declared().values())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    for expression in expressions + [variable.get("definition", "") for variable in dashboard["templating"]["list"]]:
        assert names_in(expression) <= declared().keys() | recorded()
        assert labels_in(expression) <= every_label | SCRAPED
    for name in ("kind", "tenant"):
        assert any(f'"${name}"' in expression for expression in expressions) == (name in chosen)
