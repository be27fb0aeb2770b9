"""The operator's page knows every metric and every alert, and no others."""

import re

from declared import ALERTS, DEPLOY, declared, recorded, rules

PAGE = (DEPLOY.parent / "docs" / "operations.md").read_text()


def test_every_alert_has_a_section_that_says_what_to_do() -> None:
    sections = re.findall(r"^### (\w+)\n\n\*(\w+)\.\*", PAGE, re.MULTILINE)
    assert sections == [(rule["alert"], rule["labels"]["severity"]) for rule in rules(ALERTS)]


def test_every_metric_is_explained_and_none_that_does_not_exist() -> None:
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in declared()}
    table = set(re.findall(r"`(headway_[a-z0-9_]+)`", PAGE))
    assert families <= table
    named = set(re.findall(r"\bheadway[_:][a-z0-9_:]*[a-z0-9]", PAGE))
    assert named <= families | declared().keys() | recorded()
