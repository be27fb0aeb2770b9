"""The shipped card, reproduced from the shipped files, and the measure it is made of."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from services.dit_worker.model import checkpoint
from services.dit_worker.training.baselines import class_gaussians, class_means
from services.dit_worker.training.card import other_run
from services.dit_worker.training.data import digits
from services.dit_worker.training.dfd import Bootstrap, estimate, frechet, moments
from services.dit_worker.training.extractor import EXTRACTOR, JUDGES, load_extractor
from services.dit_worker.training.page import page
from services.dit_worker.training.quality import Protocol, generate, nearest, normalised, sample_dfd

MODEL = Path(__file__).parents[4] / "models" / "dit-digits"
SAME_FILES = 0.002  # sums in another order on another machine; a seed's own spread is ten times this


@pytest.fixture(scope="module")
def card():
    return json.loads((MODEL / "card.json").read_text())


@pytest.fixture(scope="module")
def shipped():
    return checkpoint.load(MODEL)


@pytest.fixture(scope="module")
def data():
    return digits()


@pytest.fixture(scope="module")
def extractor():
    return load_extractor(MODEL, JUDGES["digits"])


def _distance(extractor, data, images) -> float:
    return frechet(moments(extractor(images)), moments(extractor(data.held_out.images)))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_samples_figures_are_the_cards(steps, card, shipped, data, extractor):
    sample = card["sample_of_seed_0"]
    found = sample_dfd(
        shipped.network, extractor, data.held_out, data.labels[: sample["images"]], steps, shipped.config.guidance
    )
    assert found == pytest.approx(sample["dfd"][str(steps)], abs=SAME_FILES)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_every_seeds_figures_are_the_cards(steps, card, shipped, data, extractor):
    labels, entry = data.train.labels, card["steps"][str(steps)]
    seeds = range(card["protocol"]["noise_seeds"])
    found = [_distance(extractor, data, generate(shipped.network, labels, steps, seed)) for seed in seeds]
    assert found == pytest.approx(entry["per_seed"], abs=SAME_FILES)
    assert sum(found) / len(found) == pytest.approx(entry["dfd"], abs=SAME_FILES)


def test_the_baselines_are_the_cards(card, data, extractor):
    labels = data.train.labels
    gaussian = class_gaussians(data.train, labels, torch.Generator().manual_seed(0)).clamp(-1, 1)
    for name, images in [
        ("floor_train_split", data.train.images),
        ("class_means", class_means(data.train, labels)),
        ("class_gaussian_no_network", gaussian),
    ]:
        assert _distance(extractor, data, images) == pytest.approx(card[name]["per_seed"][0], rel=0.01), name
    assert extractor.accuracy(data.held_out) == pytest.approx(card["extractor"]["held_out_accuracy"], abs=0.002)


def test_the_model_beats_what_needs_no_network(card):
    assert card["steps"]["1"]["dfd"] < card["class_gaussian_no_network"]["dfd"] / 3
    for steps in ("1", "2", "4"):
        assert card["steps"][steps]["dfd"] < card["same_weights_euler"][steps]["dfd"]


def test_normalised_quality_is_the_designs_formula(card):
    top, gaussian = card["steps"]["4"]["dfd"], card["class_gaussian_no_network"]["dfd"]
    for rung in card["rungs"]:
        expected = 1 - (card["steps"][str(rung["steps"])]["dfd"] - top) / (gaussian - top)
        assert rung["quality"] == pytest.approx(expected, abs=1e-3)
    assert normalised(99.0, 0.1, 1.0) == 0.0
    assert normalised(0.05, 0.1, 1.0) == 1.0
    assert [normalised(dfd, 2.0, 1.0) for dfd in (1.5, 2.0, 3.0)] == [1.0, 1.0, 0.0]


def test_the_card_names_the_files_that_lie_beside_it(card):
    assert card["weights_sha256"] == checkpoint.sha256_of(MODEL / checkpoint.WEIGHTS)
    assert card["extractor"]["sha256"] == checkpoint.sha256_of(MODEL / EXTRACTOR)
    assert (MODEL / "README.md").read_text() == page(card)


def test_same_seed_means_same_noise_at_every_step_count(shipped):
    """Paired: the flow is near enough deterministic that one and four steps draw the same digit in the same hand."""
    labels = torch.arange(10).repeat(4)
    one, four = (generate(shipped.network, labels, steps, seed=3) for steps in (1, 4))
    matched = (one - four).flatten(1).norm(dim=1).mean()
    shuffled = (one - four.roll(10, dims=0)).flatten(1).norm(dim=1).mean()
    assert matched < shuffled / 2


def test_the_frechet_distance_of_known_gaussians():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(50_000, 3, generator=generator, dtype=torch.float64)
    b = a * torch.tensor([1.0, 2.0, 3.0]) + torch.tensor([1.0, 0.0, 0.0])
    assert frechet(moments(a), moments(a)) == pytest.approx(0, abs=1e-9)
    assert frechet(moments(a), moments(b)) == pytest.approx(1 + 1 + 4, rel=0.02)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    assert frechet(moments(a @ turn), moments(b @ turn)) == pytest.approx(frechet(moments(a), moments(b)))


def test_intervals_are_centred_and_paired():
    generator = torch.Generator().manual_seed(1)
    held_out = torch.randn(300, 4, generator=generator)
    bootstrap = Bootstrap(held_out, seeds=3, resamples=60, generator=generator)
    near = [torch.randn(600, 4, generator=generator) + 0.3 for _ in range(3)]
    far = [features + 0.05 for features in near]
    (near_point, near_spread), (far_point, far_spread) = bootstrap.distances(near), bootstrap.distances(far)
    alone = estimate(far_point, far_spread)
    paired = estimate(far_point - near_point, far_spread - near_spread)
    assert alone.low < alone.value < alone.high
    assert paired.value > 0
    assert paired.high - paired.low < (alone.high - alone.low) / 2
    assert estimate(near_point * 0, near_spread, least=0.0).low == 0.0


def test_nearest_of_a_train_image_is_itself(data):
    assert nearest(data.train.images[:5], data.train.images) == pytest.approx(0, abs=1e-2)
    assert nearest(data.held_out.images, data.train.images) > 1


def test_another_run_is_measured_as_the_first_was(card, shipped, data, extractor):
    """The shipped weights taken for another run, on few labels: the entry agrees with the quick figure."""
    few = dataclasses.replace(data, labels=data.labels[: card["sample_of_seed_0"]["images"]])
    protocol = Protocol(seeds=1, few_seeds=1)
    entry = other_run(shipped.config, shipped.network, extractor, few, protocol)
    assert entry["dfd"] == pytest.approx(card["sample_of_seed_0"]["dfd"], abs=SAME_FILES)
    assert entry["seed"] == 0
    text = page(card | {"other_runs": [entry | {"seed": 5}]})
    assert "2 training runs" in text
    assert f"seed 5: {entry['dfd']['1']:.3f} at 1" in text
