import pytest
import torch

from services.dit_worker.training.data import digits
from services.dit_worker.training.loop import ResumeError, Training, learning_rate, run
from services.dit_worker.training.recipe import Recipe

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
    for name, value in whole.shipped().state_dict().items():
        assert torch.equal(value, second.shipped().state_dict()[name]), name


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
    assert learning_rate(recipe, 0) == pytest.approx(0.1)
    assert learning_rate(recipe, 10) == pytest.approx(1.0)
    assert learning_rate(recipe, 100) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("change", "field"),
    [({"steps": 5}, "steps"), ({"jvp_share": 0.0}, "jvp_share"), ({"guidance_max": 0.5}, "guidance_max")],
)
def test_a_bad_recipe_names_its_field(change, field):
    with pytest.raises(ValueError, match=field):
        Recipe(**change)
