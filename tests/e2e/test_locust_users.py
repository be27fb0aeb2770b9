"""The users for Locust, run by Locust against a mesh: every kind is asked and answered, refusals keep their reasons."""

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "locust" / "locustfile.py"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("locust") is None, reason="no Locust here: pip install 'headway[locust]'"
    ),
]


def locust(host: str, table: Path, *flags: str, users: int = 3) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "locust", "-f", str(FILE), "--host", host, "--headless", "--csv", str(table)]
    count = ["-u", str(users), "-r", str(users), "--only-summary", "--exit-code-on-error", "0"]
    return subprocess.run([*command, *count, *flags], capture_output=True, text=True, timeout=80, check=False)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_all_kinds_are_asked_and_what_was_served_is_told(mesh: Any, tmp_path: Path) -> None:
    done = locust(mesh.address, tmp_path / "all", "-t", "10s", "--deadlines-s", "20")
    assert done.returncode == 0, done.stderr
    counted = {row["Name"]: row for row in rows(tmp_path / "all_stats.csv")}
    for kind in ("text", "image", "splat"):
        assert int(counted[kind]["Request Count"]) > int(counted[kind]["Failure Count"])
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"{kind}: ")]
        assert "rungs" in line and "mean quality" in line


def test_refusals_are_failures_by_their_reason(mesh: Any, tmp_path: Path) -> None:
    done = locust(mesh.address, tmp_path / "few", "-t", "3s", "--deadlines-s", "0.02", "ImageUser", users=1)
    assert done.returncode == 0, done.stderr
    failures = rows(tmp_path / "few_failures.csv")
    assert failures
    assert {row["Error"].split("(")[0] for row in failures} == {"NotServed"}
    assert any("BUDGET_TOO_SMALL" in row["Error"] or "EXPIRED" in row["Error"] for row in failures)
