"""Damaged files of every format are read as something safe, or refused by name: no crash, no unbounded memory."""

import json
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import damage
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

GOOD = damage.good_files()
MOST_BYTES = 64 << 20  # of 1,000 gaussians at most: 1 MB of arrays, some copies of the file, and what a parser needs
SWEEP = 1000


@settings(max_examples=40, deadline=None)
@given(chance=st.randoms(use_true_random=False))
@pytest.mark.parametrize("name", GOOD)
def test_damaged_files_are_read_or_refused(
    name: str, chance: random.Random, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    data = damage.damaged_file(name, GOOD[name], chance)
    tracemalloc.start()
    try:
        damage.check(path, data)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
@pytest.mark.parametrize("name", GOOD)
def test_a_sweep_of_damaged_files_within_a_gigabyte(name: str) -> None:
    script = Path(damage.__file__)
    folders = os.pathsep.join([str(script.parents[3]), str(script.parent)])
    done = subprocess.run(
        [sys.executable, str(script), name, str(SWEEP), "0"], capture_output=True, text=True, timeout=80, check=False,
        env=os.environ | {"PYTHONPATH": folders, "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["read"] + told["refused"] == SWEEP
    assert told["refused"] > SWEEP / 20
