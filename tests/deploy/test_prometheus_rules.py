"""The rules of Prometheus: about names that exist, in the right order, and right by promtool where it is installed."""

import shutil
import subprocess

import pytest
import yaml
from declared import ALERTS, DEPLOY, RULES, SCRAPED, declared, labels_in, names_in, recorded, rules

EVERY_RULE = [pytest.param(rule, id=rule.get("record") or rule["alert"]) for rule in rules(RULES) + rules(ALERTS)]


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_a_rule_uses_only_names_that_are_declared_or_recorded(rule: dict[str, str]) -> None:
    unknown = names_in(rule["expr"]) - declared().keys() - recorded()
    assert not unknown


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_a_rule_uses_only_labels_that_its_metrics_carry(rule: dict[str, str]) -> None:
    metrics = declared()
    carried = set().union(*(metrics.get(name, set()) for name in names_in(rule["expr"])))
    of_recorded = [other["expr"] for other in rules(RULES) if other["record"] in names_in(rule["expr"])]
    carried.update(*(labels_in(expression) for expression in of_recorded))
    assert labels_in(rule["expr"]) <= carried | SCRAPED


def test_a_rule_records_before_another_one_of_its_group_reads() -> None:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        later = {rule["record"] for rule in group["rules"]}
        for rule in group["rules"]:
            assert not names_in(rule["expr"]) & later, rule["record"]
            later.remove(rule["record"])


def test_every_alert_says_how_grave_it_is_and_what_is_wrong() -> None:
    for rule in rules(ALERTS):
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert "{{ $labels." in rule["annotations"]["summary"]


def test_names_that_do_not_exist_are_found() -> None:
    assert names_in("rate(headway_requests[5m]) / headway:nothing:rate5m") - declared().keys() - recorded() == {
        "headway_requests",
        "headway:nothing:rate5m",
    }
    assert labels_in('sum by (kind, tenent) (headway_workers{state!="lost", zone=~"a"})') == {
        "kind",
        "tenent",
        "state",
        "zone",
    }


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: package prometheus)")
@pytest.mark.parametrize(
    "arguments", [("check", "config", "prometheus.yml"), ("test", "rules", "headway.rules.test.yaml")], ids=" ".join
)
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=DEPLOY / "prometheus", capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
