"""The contracts by buf's rules, and that it notices what would break callers: npm install -g @bufbuild/buf."""

import shutil
import subprocess
from pathlib import Path

import pytest

PROTOS = Path(__file__).parents[2] / "protos"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("buf") is None, reason="no buf here: npm install -g @bufbuild/buf"),
]


def buf(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["buf", *arguments], capture_output=True, text=True, timeout=80, check=False)


def test_the_contracts_keep_to_the_rules() -> None:
    done = buf("lint", str(PROTOS))
    assert done.returncode == 0, done.stdout


def test_a_renumbered_field_is_noticed(tmp_path: Path) -> None:
    changed = shutil.copytree(PROTOS, tmp_path / "protos")
    assert buf("breaking", str(changed), "--against", str(PROTOS)).returncode == 0
    text = changed / "headway" / "v1" / "text.proto"
    text.write_text(text.read_text().replace("string model = 1;", "string model = 99;", 1))
    done = buf("breaking", str(changed), "--against", str(PROTOS))
    assert done.returncode != 0
    assert "text.proto" in done.stdout
