import math
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from services.dit_worker.model.topology import Topology
from services.dit_worker.training.data import digits
from services.dit_worker.training.loop import ResumeError, Training, run
from services.dit_worker.training.objective import losses
from services.dit_worker.training.recipe import Recipe
from services.dit_worker.training.shapes.data_set import Stream

# torch scripts its own decompositions on the first forward-mode call.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

SMALL = Recipe(steps=6, batch=8, warmup_steps=2)


@pytest.fixture(scope="module")
def data():
    return digits()


@pytest.fixture
def topology(tiny, data):
    return type(tiny.topology)(image_px=8, channels=1, patch_px=4, width=16, depth=1, heads=2, classes=10)


def test_the_split_is_fixed_and_disjoint(data):
    assert (len(data.train), len(data.held_out)) == (1198, 599)
    assert data.train.images.amin() == -1
    assert data.train.images.amax() == 1
    again = digits()
    assert torch.equal(again.held_out.labels, data.held_out.labels)


def test_a_resumed_run_ends_on_the_same_weights(topology, data, tmp_path):
    whole = Training(SMALL, topology, data.train)
    run(whole, tmp_path / "whole")
    first = Training(SMALL, topology, data.train)
    for _ in range(3):
        first.advance()
    (tmp_path / "halves").mkdir()
    first.save(tmp_path / "halves" / "state.safetensors")
    second = Training(SMALL, topology, data.train)
    run(second, tmp_path / "halves")
    assert second.step == 6
    assert _same(whole, second)


def test_another_recipes_state_is_refused(topology, data, tmp_path):
    Training(SMALL, topology, data.train).save(tmp_path / "state.safetensors")
    other = Training(Recipe(steps=7, batch=8, warmup_steps=2), topology, data.train)
    with pytest.raises(ResumeError, match="another recipe"):
        other.load(tmp_path / "state.safetensors")


def test_training_lowers_the_flow_loss(topology, data):
    training = Training(Recipe(steps=120, batch=32, warmup_steps=5, learning_rate=5e-3), topology, data.train)
    flow = [float(training.advance().flow) for _ in range(60)]
    assert sum(flow[-10:]) < 0.8 * sum(flow[:10])


def test_the_learning_rate_warms_up_and_falls_to_zero():
    recipe = Recipe(steps=100, warmup_steps=10, learning_rate=1.0)
    assert recipe.learning_rate_at(0) == pytest.approx(0.1)
    assert recipe.learning_rate_at(10) == pytest.approx(1.0)
    assert recipe.learning_rate_at(100) == pytest.approx(0.0)


def test_with_a_cooldown_the_rate_stays_and_then_falls_in_a_line():
    recipe = Recipe(steps=100, warmup_steps=10, learning_rate=1.0, cooldown_steps=20)
    assert [recipe.learning_rate_at(step) for step in (10, 50, 80, 90, 100)] == [1.0, 1.0, 1.0, 0.5, 0.0]


def test_a_longer_run_goes_on_from_a_state_before_the_cooldown():
    short = Recipe(steps=100, cooldown_steps=20, warmup_steps=2)
    longer = replace(short, steps=200, cooldown_steps=50)
    assert longer.continues(short.as_dict(), step=80)
    assert not longer.continues(short.as_dict(), step=81)
    assert not longer.continues(replace(short, batch=8).as_dict(), step=10)
    assert short.continues(short.as_dict(), step=99)
    assert not replace(SMALL, steps=7).continues(SMALL.as_dict(), step=0)


def test_a_longer_run_from_a_state_ends_as_one_that_ran_through(topology, data, tmp_path):
    longer = Recipe(steps=6, batch=8, warmup_steps=2, cooldown_steps=2)
    whole = Training(longer, topology, data.train)
    run(whole, tmp_path / "whole")
    first = Training(replace(longer, steps=5), topology, data.train)
    for _ in range(3):
        first.advance()
    (tmp_path / "halves").mkdir()
    first.save(tmp_path / "halves" / "state.safetensors")
    second = Training(longer, topology, data.train)
    run(second, tmp_path / "halves")
    assert _same(whole, second)
    longest = Training(replace(longer, steps=8), topology, data.train)
    longest.load(tmp_path / "whole" / "level.safetensors")
    assert longest.step == longer.level_until == 4
    with pytest.raises(ResumeError, match="another recipe"):
        longest.load(tmp_path / "whole" / "state.safetensors")


SHAPES_TOPOLOGY = Topology(image_px=32, channels=3, patch_px=8, width=16, depth=1, heads=2, classes=8, frequencies=4)
SHAPES_RUN = Recipe(steps=5000, batch=8, warmup_steps=2, cooldown_steps=4, autocast=True, guidance_max=2.0)
KILLED_RUN = f"""
import sys
from pathlib import Path
import torch
from services.dit_worker.model.topology import Topology
from services.dit_worker.training.loop import Training, run
from services.dit_worker.training.recipe import Recipe
from services.dit_worker.training.shapes.data_set import Stream

torch.set_num_threads(1)
run(Training({SHAPES_RUN}, {SHAPES_TOPOLOGY}, Stream(1)), Path(sys.argv[1]), report_every=1, save_every=4)
"""


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    """kill -9 in the middle of a run on the endless stream; what it wrote last is a whole state."""
    command = [sys.executable, "-W", "ignore", "-c", KILLED_RUN, str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    steps = (int(line.split(",")[0]) for line in process.stdout)
    assert next(step for step in steps if step >= 6) == 6
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    last = max(int(row.split(",")[0]) for row in (tmp_path / "killed" / "loss.csv").read_text().split())
    recipe = replace(SHAPES_RUN, steps=last + 8)
    ends = [Training(recipe, SHAPES_TOPOLOGY, Stream(1)) for _ in range(2)]
    for training, name in zip(ends, ("killed", "whole"), strict=True):
        run(training, tmp_path / name, save_every=8)
    assert _same(*ends)
    assert (tmp_path / "whole" / "state.safetensors").read_bytes() == (
        tmp_path / "killed" / "state.safetensors"
    ).read_bytes()


def test_progress_is_written_as_a_log_and_a_plot(topology, data, tmp_path):
    run(Training(SMALL, topology, data.train), tmp_path, report_every=2, save_every=6)
    rows = [row.split(",") for row in (tmp_path / "loss.csv").read_text().split()]
    assert [int(row[0]) for row in rows] == [2, 4, 6]
    assert all(math.isfinite(float(cell)) for row in rows for cell in row)
    assert all(float(flow) > 0 for _, _, flow, _ in rows)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def _same(one: Training, other: Training) -> bool:
    mine, theirs = one.shipped().state_dict(), other.shipped().state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_bfloat16_autocast_keeps_the_gradients_direction(topology, data):
    """Linears and attention in bfloat16 under the JVP: the same loss and gradient but for rounding."""
    recipe = Recipe(steps=40, batch=64, warmup_steps=2, guidance_max=2.0, learning_rate=3e-3)
    training = Training(recipe, topology, data.train)
    for _ in range(20):
        training.advance()
    batch, found = training.draw(), []
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            terms = losses(training.network, training.target, batch, topology.null_class)
        training.network.zero_grad()
        terms.total.backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in training.network.parameters()])
        found.append((terms.total.detach(), gradient))
    (exact, direction), (rounded, turned) = found
    assert rounded.dtype == torch.float32
    assert rounded == pytest.approx(float(exact), rel=0.01)
    assert torch.nn.functional.cosine_similarity(direction, turned, dim=0) > 0.99


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"steps": 5}, "steps"),
        ({"jvp_share": 0.0}, "jvp_share"),
        ({"guidance_max": 0.5}, "guidance_max"),
        ({"guided_share": 0.0}, "guided_share"),
        ({"cooldown_steps": 4500}, "cooldown_steps"),
    ],
)
def test_a_bad_recipe_names_its_field(change, field):
    with pytest.raises(ValueError, match=field):
        Recipe(**change)
