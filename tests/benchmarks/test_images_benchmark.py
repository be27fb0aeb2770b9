import asyncio
from pathlib import Path

import pytest
import torch

from benchmarks.experiment.capacity import Effort
from benchmarks.experiment.runner import Plan, run
from benchmarks.images import contenders, subject, verdict
from benchmarks.images_quality import ServedQuality
from services.dit_worker.model.checkpoint import read_config, read_rungs

DIGITS = Path(__file__).parents[2] / "models" / "dit-digits"


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other at every small matrix are slow where other tests run too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_headway_is_always_among_the_contenders():
    names = [contender.name for contender in contenders((4, 2, 1), "all")]
    assert names == ["headway", "fixed:4", "fixed:2", "fixed:1", "threshold", "fifo", "greedy"]
    assert [contender.name for contender in contenders((4, 2, 1), "none")] == ["headway"]
    assert [contender.name for contender in contenders((4, 2, 1), "fifo,fixed:1")] == ["headway", "fixed:1", "fifo"]


def test_the_dfd_is_of_the_mixture_and_not_of_its_rungs():
    quality = ServedQuality(DIGITS, 64, resamples=10)
    whole = {rung: quality.dfd({rung: 40}) for rung in ("4", "2", "1")}
    assert all(low <= value <= high for value, low, high in whole.values())
    assert quality.dfd({"4": 3}) == whole["4"]  # shares count, not how many
    mixed = quality.dfd({"4": 30, "1": 10})[0]
    assert mixed not in {value for value, _, _ in whole.values()}
    assert quality.dfd({}) is None


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_small_run_of_the_experiments_on_the_real_worker():
    config = read_config(DIGITS)
    plan = Plan(loads=(0.5, 2.0), requests=40, most_cell_s=3.0, shape_s=3.0, effort=Effort(3, 1.0), gap_instances=3)
    found = contenders(config.ladder, "fixed:4")
    results = asyncio.run(run(subject(DIGITS, config.topology.classes), found, plan))
    assert [(cell.contender, cell.shape) for cell in results.cells] == [
        (name, shape) for name in ("headway", "fixed:4") for shape in ("steady", "steady", "spike", "bursty")
    ]
    rungs = {str(rung.steps) for rung in read_rungs(DIGITS, config)}
    for cell in results.cells:
        figures = cell.figures
        assert figures["n"] == len(cell.records) == figures["admitted"] + sum(figures["refused"].values())
        assert set(figures["rungs"]) <= (rungs if cell.contender == "headway" else {"4"})
        assert figures["goodput"] <= figures["bound"] + 1e-6
    assert results.capacity.items_per_s[0][1] < results.capacity.items_per_s[-1][1]  # four steps take longer than one
    for cell in results.cells:
        cell.figures["served_dfd"] = 1.0
    assert verdict(results, "fixed:4", "fixed:4")[0]["load"] == 0.5
