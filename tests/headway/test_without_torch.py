"""Router, prefix cache, client and command line are importable where no worker's library is installed."""

import subprocess
import sys

import pytest

WORKERS_ONLY = ("torch", "triton", "numba", "numpy", "safetensors", "tokenizers", "PIL", "gsply", "jinja2")
BLOCK = f"""
import sys
for name in {WORKERS_ONLY!r}:
    sys.modules[name] = None  # an import of it fails
"""


@pytest.mark.parametrize(
    "module",
    [
        "headway.client",
        "headway.cli.main",
        "headway.device.__main__",
        "services.router.main",
        "services.prefix_cache.main",
    ],
)
def test_it_imports_without_any_library_of_the_workers(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{BLOCK}\nimport {module}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("worker", "extra"), [("text_worker", "text"), ("dit_worker", "dit"), ("splat_worker", "splat")]
)
def test_a_worker_says_which_extra_it_needs(worker: str, extra: str) -> None:
    start = f"{BLOCK}\nfrom services.{worker} import main\nmain()"
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"pip install 'headway[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
