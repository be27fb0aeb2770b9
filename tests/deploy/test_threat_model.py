"""Every line of the threat model names a test that exists."""

import ast
import re
from pathlib import Path

from declared import DEPLOY

ROOT = DEPLOY.parent
LINES = [line for line in (ROOT / "docs" / "threat-model.md").read_text().splitlines() if line.startswith("| ")]
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def _functions(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_threat_has_a_test_that_exists() -> None:
    threats = [line for line in LINES if not line.startswith("| threat ")]
    assert len(threats) > 30
    for line in threats:
        named = _TEST.findall(line.rpartition(" | ")[2])
        assert named, line
        for path, function in named:
            assert function in _functions(ROOT / path), line
