from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from headway.config import CommaList, ConfigError, ServiceConfig, check_address, load, read, setting


class Example(ServiceConfig):
    """An example service."""

    workers: CommaList = setting((), "addresses", group="Example", unit="LIST")
    warm: bool = setting(True, "calibrate at start", group="Example")
    redis: str = setting("redis://127.0.0.1", "server", group="Example", pattern=r"^redis://\S+$")


def _read(*argv: str, **env: str) -> Example:
    return read(Example, argv, prog="example", env=env)


def _lines(*argv: str, **env: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        _read(*argv, **env)
    return caught.value.lines


def test_flags_win_over_variables_over_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "h.yaml"
    file.write_text("drain_s: 1\nmax-deadline-s: 2\nmax_message_mib: 3\n")
    settings = _read("--config", str(file), "--drain-s=9", HEADWAY_DRAIN_S="8", HEADWAY_MAX_DEADLINE_S="7")
    assert (settings.drain_s, settings.max_deadline_s, settings.max_message_mib) == (9, 7, 3)
    assert settings.return_reserve_ms == 5


def test_a_file_may_be_named_by_a_variable_and_switched_off_by_a_flag(tmp_path: Path) -> None:
    file = tmp_path / "h.yaml"
    file.write_text("drain_s: 1")
    assert _read(HEADWAY_CONFIG=str(file)).drain_s == 1
    assert _read("--config", "off", HEADWAY_CONFIG=str(file)).drain_s == 10


def test_values_take_their_types() -> None:
    settings = _read("--workers", "a:1, b:2", "--no-warm", "--metrics-port", "off", HEADWAY_LISTEN="[::1]:0")
    assert settings.workers == ("a:1", "b:2")
    assert settings.warm is False
    assert settings.metrics_port is None
    assert settings.listen == "[::1]:0"


def test_empty_and_foreign_variables_are_ignored() -> None:
    assert _read(HEADWAY_DRAIN_S="", HEADWAY_NOT_OURS="1", PATH="/bin").drain_s == 10


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        _read().drain_s = 3


def test_every_mistake_is_named_with_source_and_limit(tmp_path: Path) -> None:
    file = tmp_path / "h.yaml"
    file.write_text("max_message_mib: 0")
    lines = _lines("--config", str(file), "--listen", "nowhere", HEADWAY_DRAIN_S="nan")
    assert len(lines) == 3
    assert lines[0].startswith("listen (flag --listen): 'nowhere': must be HOST:PORT")
    assert "drain_s (environment HEADWAY_DRAIN_S): 'nan'" in lines[1]
    assert lines[2] == f"max_message_mib ({file}, key max_message_mib): 0: Input should be greater than or equal to 1"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--max-dedline-s", "1"], "did you mean '--max-deadline-s'?"),
        (["--max_deadline_s=1"], "did you mean '--max-deadline-s'?"),
        (["stray"], "unknown flag 'stray'"),
        (["--listen"], "--listen"),
        (["--tls-cert", __file__], "tls_cert and tls_key are set together"),
        (["--api-keys", "/no/such/file"], "api_keys (flag --api-keys): '/no/such/file'"),
        (["--otlp-endpoint", "collector"], "otlp_endpoint (flag --otlp-endpoint)"),
        (["--log-level", "loud"], "'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_a_wrong_command_line_says_why(argv: list[str], said: str) -> None:
    assert said in "\n".join(_lines(*argv))


def test_a_password_is_not_echoed() -> None:
    (line,) = _lines("--redis", "http://me:hunter2@host")
    assert "hunter2" not in line
    assert "***" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("drainn_s: 1", "did you mean 'drain_s'?"),
        ("- 1", "must hold one mapping"),
        ("1: 2", "must hold one mapping"),
        ("a: [", "not YAML: line 1"),
        ("drain_s: 1\ndrain_s: 2", "key 'drain_s' is given twice"),
        ("drain_s: 1\ndrain-s: 2", "spelled with - and with _"),
        ("a: &a [1]\nb: *a", "aliases are not allowed"),
        ("a: !!python/object/apply:os.getcwd []", "not YAML"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: " + "x" * (1 << 20), "larger than"),
    ],
)
def test_a_wrong_file_says_why(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "h.yaml"
    file.write_text(text)
    (line,) = _lines("--config", str(file))
    assert said in line
    assert str(file) in line


def test_an_unreadable_file_says_why(tmp_path: Path) -> None:
    assert "cannot be read" in _lines("--config", str(tmp_path))[0]
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in _lines("--config", str(tmp_path / "b.yaml"))[0]


def test_load_leaves_with_code_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        load(Example, ["--drain-s", "-1"], prog="example", env={})
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("example: drain_s (flag --drain-s): '-1': ")


def test_help_shows_every_flag_with_default_and_limits(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        load(Example, ["--help"], prog="example", env={})
    shown = " ".join(capsys.readouterr().out.split())
    assert left.value.code == 0
    assert all("--" + name.replace("_", "-") in shown for name in Example.model_fields)
    assert "above 0; at most 3600; default: 30.0" in shown
    assert "--no-warm" in shown


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30))
def test_an_address_is_taken_whole_or_refused(text: str) -> None:
    try:
        assert check_address(text) == text
    except ValueError:
        return
    assert text.startswith("unix:") or 0 <= int(text.rpartition(":")[2]) <= 65535
