"""The examples that users copy, each against the mesh: it streams within a deadline, and says why it was refused.

Those in other languages are built as their files say, where their tools are.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import google.rpc
import pytest
from conftest import Mesh

ROOT = Path(__file__).parents[2]
EXAMPLES, PROTOS = ROOT / "examples", ROOT / "protos"
BUILD_S = 500.0
"""Compilers take half a minute alone, and much longer where others compute."""


def run(*command: str, cwd: Path = ROOT, timeout_s: float = 60.0, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False, env={**os.environ, **env}
    )


def needs(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed here: {', '.join(missing)}")


def fetched(*command: str, cwd: Path, **env: str) -> None:
    """Runs what gets libraries from a registry; skips where none can be reached."""
    done = run(*command, cwd=cwd, timeout_s=BUILD_S, **env)
    if done.returncode != 0:
        pytest.skip(f"{' '.join(command[:3])} failed: {done.stderr.strip()[-300:]}")


def built(*command: str, cwd: Path, **env: str) -> None:
    done = run(*command, cwd=cwd, timeout_s=BUILD_S, **env)
    assert done.returncode == 0, done.stderr


def check(mesh: Mesh, program: Sequence[str], cwd: Path = ROOT, **env: str) -> None:
    streamed = run(*program, mesh.address, "20", "The iterator protocol", cwd=cwd, **env)
    assert streamed.returncode == 0, streamed.stderr
    first, *text, last = streamed.stdout.rstrip("\n").split("\n")
    assert re.fullmatch(r"plan: rung 100%, \d+ of \d+ ms", first)
    assert "".join(text).strip()
    assert re.fullmatch(r"served: rung 100%, quality 1\.00, slack \d+ ms", last)
    bad = run(*program, mesh.address, "20", "", cwd=cwd, **env)
    assert bad.returncode == 1
    assert re.search(r"^refused: \S+ BAD_INPUT: .*text", bad.stderr, re.MULTILINE)
    late = run(*program, mesh.address, "0.001", "The iterator protocol", cwd=cwd, **env)
    assert late.returncode == 1
    assert re.search(r"^refused: (4|DeadlineExceeded|DEADLINE_EXCEEDED) ", late.stderr, re.MULTILINE)


@pytest.mark.parametrize("name", ["client.py", "plain_stubs.py"])
def test_python(mesh: Mesh, name: str) -> None:
    check(mesh, (sys.executable, str(EXAMPLES / "python" / name)), PYTHONPATH=str(ROOT))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_node(mesh: Mesh, tmp_path: Path) -> None:
    needs("node", "npm")
    folder = shutil.copytree(EXAMPLES / "node", tmp_path / "node")
    fetched("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", cwd=folder)
    check(mesh, ("node", "client.js"), folder, HEADWAY_PROTOS=str(PROTOS))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cpp(mesh: Mesh, tmp_path: Path) -> None:
    needs("make", "g++", "protoc", "grpc_cpp_plugin", "pkg-config")
    if run("pkg-config", "--exists", "protobuf", "grpc++").returncode != 0:
        pytest.skip("not installed here: gRPC for C++")
    folder = shutil.copytree(EXAMPLES / "cpp", tmp_path / "cpp")
    googleapis = Path(google.rpc.__path__[0]).parents[1]
    built("make", f"PROTOS={PROTOS}", f"GOOGLEAPIS={googleapis}", cwd=folder)
    check(mesh, ("build/client",), folder)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_go(mesh: Mesh, tmp_path: Path) -> None:
    needs("go", "protoc")
    folder = shutil.copytree(EXAMPLES / "go", tmp_path / "go")
    tools = {"GOBIN": str(tmp_path / "bin"), "GOFLAGS": "-mod=mod", "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    for tool in re.findall(r"go install (\S+)", (folder / "generate.sh").read_text()):
        fetched("go", "install", tool, cwd=tmp_path, GOBIN=tools["GOBIN"])
    built("./generate.sh", cwd=folder, PROTOS=str(PROTOS), **tools)
    fetched("go", "mod", "download", cwd=folder, **tools)
    built("go", "build", "-o", "client", ".", cwd=folder, **tools)
    check(mesh, ("./client",), folder)
