import contextlib
import sys
from pathlib import Path

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from headway.cli import show
from headway.cli.main import app
from headway.cli.options import parse_duration_s
from headway.errors import BadInput, BudgetTooSmall, Failed, NotFound, Shed, Unauthenticated

NOBODY = "127.0.0.1:1"


def _run(*argv: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(argv), env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.mark.parametrize(
    "argv", [["text", "hi"], ["image", "--label", "7"], ["render", "s", "-o", "a.png"], ["status"]]
)
def test_a_mesh_that_is_not_there_is_said_so(argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = _run(*argv, "--address", NOBODY)
    assert code == show.EXIT_FAILED
    assert f"cannot reach {NOBODY}" in said
    assert "headway up" in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["text", "hi", "--deadline", "soon"], "must be a time above 0"),
        (["text", "hi", "--deadline", "0"], "must be a time above 0"),
        (["text", "hi", "--at-least", "speed=9"], "at_least"),
        (["text", "hi", "--at-least", "nfe=2", "--exact", "4"], "exact"),
        (["text", "hi", "--priority", "urgent"], "priority: must be one of low, normal, high"),
        (["text", "hi", "--api-key", "/no/such/file"], "/no/such/file"),
        (["image"], "--label"),
        (["image", "--label", "1", "--format", "gif"], "must end in one of"),
        (["render", "s", "-o", "a.gif"], "must end in one of .png"),
        (["render", "s", "-o", "a.png", "--position", "1,2"], "must be three numbers"),
        (["render", "s", "-o", "a.png", "--width", "0"], "--width"),
        (["up", "--listen", "nowhere"], "must be HOST:PORT"),
        (["up", "--listen", "unix:/x"], "the router listens on HOST:PORT"),
        (["up", "--models", "/no/such/folder"], "/no/such/folder"),
        (["nonsense"], "nonsense"),
    ],
)
def test_bad_input_is_refused_before_anything_is_called(argv: list[str], said: str) -> None:
    code, output = _run(*argv)
    assert code == show.EXIT_BAD_INPUT
    assert said in " ".join(output.split())


def test_down_says_when_nothing_runs(tmp_path: Path) -> None:
    assert _run("down", "--run-dir", str(tmp_path / "run")) == (show.EXIT_FAILED, "no mesh runs here\n")


def test_a_demo_without_the_workers_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("headway.cli.demo", "headway.cli.demo_kinds"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "PIL", None)
    code, said = _run("demo")
    assert code == show.EXIT_FAILED
    assert "headway[workers]" in said


@pytest.mark.parametrize("command", ["", "up", "down", "status", "text", "image", "render", "demo"])
def test_every_command_has_help(command: str) -> None:
    code, output = _run(*command.split(), "--help")
    assert code == 0
    assert "Usage" in output


def test_a_refusal_says_why_and_when_to_come_back() -> None:
    shed = Shed("too much is admitted", retry_after_s=0.25)
    assert show.error_lines(shed, NOBODY) == ["SHED: too much is admitted", "  come back in 0.25 s"]
    small = show.error_lines(BudgetTooSmall(budget_ms=5, least_budget_ms=11.2), NOBODY)
    assert small[0].startswith("BUDGET_TOO_SMALL: ")
    assert small[1] == "  a budget of at least 12 ms would do"


def test_each_class_of_failure_has_its_own_exit_code() -> None:
    errors = [BadInput("a", "b"), NotFound("model", "x", []), Shed("no"), Failed("no"), Unauthenticated("no")]
    assert [show.exit_code(error) for error in errors] == [2, 2, 3, 4, 5]


@pytest.mark.parametrize(("text", "seconds"), [("1.5", 1.5), ("2s", 2), ("800ms", 0.8), ("1m", 60), ("10.0", 10)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=12))
def test_a_duration_is_positive_and_bounded_or_refused(text: str) -> None:
    with contextlib.suppress(typer.BadParameter):
        assert 0 < parse_duration_s(text) <= 3600
