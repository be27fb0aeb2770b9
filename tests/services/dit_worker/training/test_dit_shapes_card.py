"""The shapes' shipped card, reproduced from the shipped files on a sample, and what it claims."""

import json
from pathlib import Path

import pytest
import torch

from services.dit_worker.model import checkpoint
from services.dit_worker.training.baselines import class_gaussians
from services.dit_worker.training.dfd import frechet, moments
from services.dit_worker.training.extractor import EXTRACTOR, JUDGES, load_extractor
from services.dit_worker.training.page import page
from services.dit_worker.training.quality import generate, sample_dfd
from services.dit_worker.training.shapes.data_set import FIRST_TRAIN_SEED, GENERATED, TRAIN, held_out, shapes

MODEL = Path(__file__).parents[4] / "models" / "dit-shapes"
SAME_FILES = 0.01  # relative: sums in another order, levels of a picture rounded the other way
PAIRED = ["1-4", "2-4"]


@pytest.fixture(scope="module")
def card():
    return json.loads((MODEL / "card.json").read_text())


@pytest.fixture(scope="module")
def shipped():
    return checkpoint.load(MODEL)


@pytest.fixture(scope="module")
def extractor():
    return load_extractor(MODEL, JUDGES["shapes"])


@pytest.fixture(scope="module")
def pictures():
    return held_out()


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_samples_figures_are_the_cards(steps, card, shipped, extractor, pictures):
    sample = card["sample_of_seed_0"]
    labels = torch.arange(sample["images"]) % shipped.config.topology.classes
    found = sample_dfd(shipped.network, extractor, pictures, labels, steps, shipped.config.guidance)
    assert found == pytest.approx(sample["dfd"][str(steps)], rel=SAME_FILES)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_whole_seeds_figure_is_the_cards(steps, card, shipped, extractor, pictures):
    labels = torch.arange(GENERATED) % shipped.config.topology.classes
    images = generate(shipped.network, labels, steps, 1, shipped.config.guidance)
    found = frechet(moments(extractor(images)), moments(extractor(pictures.images)))
    assert found == pytest.approx(card["steps"][str(steps)]["per_seed"][1], rel=SAME_FILES)


@pytest.mark.slow
def test_the_baselines_are_the_cards(card, extractor, pictures):
    train, wanted = shapes(FIRST_TRAIN_SEED, range(TRAIN)), moments(extractor(pictures.images))
    gaussian = class_gaussians(train, train.labels[:GENERATED], torch.Generator().manual_seed(0)).clamp(-1, 1)
    for name, images in [("floor_train_split", train.images), ("class_gaussian_no_network", gaussian)]:
        found = frechet(moments(extractor(images)), wanted)
        assert found == pytest.approx(card[name]["per_seed"][0], rel=SAME_FILES, abs=1e-3), name


def test_the_judge_tells_the_held_out_solids_apart(card, extractor, pictures):
    assert extractor.accuracy(pictures) == pytest.approx(card["extractor"]["held_out_accuracy"], abs=0.003)


@pytest.mark.parametrize("pair", PAIRED)
def test_more_steps_are_better_beyond_the_interval(pair, card):
    assert card["protocol"]["noise_seeds"] >= 8
    assert card["paired_difference"][pair]["interval_95"][0] > 0


def test_the_model_beats_what_needs_no_network_and_no_jumps(card):
    for steps in ("2", "4"):
        assert card["steps"][steps]["interval_95"][1] < card["class_gaussian_no_network"]["interval_95"][0]
    for steps in ("1", "2", "4"):
        assert card["steps"][steps]["dfd"] < card["same_weights_euler"][steps]["dfd"] / 5
        assert card["steps"][steps]["dfd"] < card["class_means"]["dfd"] / 5


def test_normalised_quality_is_the_designs_formula(card):
    top, gaussian = card["steps"]["4"]["dfd"], card["class_gaussian_no_network"]["dfd"]
    for rung in card["rungs"]:
        expected = 1 - (card["steps"][str(rung["steps"])]["dfd"] - top) / (gaussian - top)
        assert rung["quality"] == pytest.approx(max(0.0, expected), abs=1e-3)


def test_the_card_names_the_files_that_lie_beside_it(card):
    assert card["weights_sha256"] == checkpoint.sha256_of(MODEL / checkpoint.WEIGHTS)
    assert card["extractor"]["sha256"] == checkpoint.sha256_of(MODEL / EXTRACTOR)
    assert (MODEL / "README.md").read_text() == page(card)


def test_nothing_was_trained_on_what_it_is_measured_on(card):
    """The held-out stream has a seed that no training run can have."""
    assert str(FIRST_TRAIN_SEED) in card["data"]["split"]
    assert not torch.equal(shapes(FIRST_TRAIN_SEED, range(8)).images, held_out().images[:8])
