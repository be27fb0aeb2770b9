"""The rendered set: distances that sphere tracing may trust, and pictures that depend on (seed, index) alone."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.dit_worker.training.shapes import render, scene
from services.dit_worker.training.shapes.data_set import Stream, shapes
from services.dit_worker.training.shapes.solids import NAMES, SOLIDS

POINTS = np.random.default_rng(0).uniform(-1.5, 1.5, (4000, 3)).astype(np.float32)
FORMS = np.random.default_rng(1).uniform(0, 1, 4000).astype(np.float32)


@pytest.mark.parametrize("solid", SOLIDS.values(), ids=NAMES)
def test_distances_have_slope_at_most_one_and_stay_inside_the_unit_ball(solid):
    moved = POINTS + np.random.default_rng(2).normal(0, 0.05, POINTS.shape).astype(np.float32)
    change = np.abs(solid(moved, FORMS) - solid(POINTS, FORMS))
    assert (change <= np.linalg.norm(moved - POINTS, axis=1) + 1e-5).all()
    far = np.linalg.norm(POINTS, axis=1) > 1
    assert (solid(POINTS[far], FORMS[far]) > 0).all()
    assert (solid(POINTS, FORMS) < 0).any()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**63), start=st.integers(0, 10**6), count=st.integers(1, 20))
def test_a_picture_depends_on_its_seed_and_index_alone(seed, start, count):
    images, labels = render.pictures(seed, range(start, start + count))
    again, _ = render.pictures(seed, range(start + count - 1, start + count))
    assert np.array_equal(images[-1:], again)
    assert labels.tolist() == [index % len(NAMES) for index in range(start, start + count)]


def test_pictures_are_cut_where_one_likes():
    """Across the renderer's own chunks too."""
    whole, _ = render.pictures(3, range(70))
    parts = [render.pictures(3, range(at, min(at + 33, 70)))[0] for at in (0, 33, 66)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_the_recipe_still_makes_what_the_shipped_model_saw():
    """Levels may round differently on another machine; a changed recipe moves whole pictures."""
    images, _ = render.pictures(1, range(6))
    assert images.shape == (6, 3, 32, 32)
    sums = images.sum(axis=(1, 2, 3), dtype=np.int64)
    assert sums == pytest.approx([384644, 323347, 254247, 437546, 325033, 272493], abs=300)


def test_the_solid_is_in_the_picture_and_every_class_looks_different():
    """Painted white on black, without light from anywhere else, the solid alone is what is not black."""
    scenes = scene.draw(5, range(64))
    black, white = np.zeros_like(scenes.paint), np.ones_like(scenes.paint)
    dark = dataclasses.replace(scenes, floor=black, sky=black, zenith=black, paint=white, gloss=scenes.gloss * 0)
    covered = (render._render(dark) > 0).any(axis=1)  # [n, 32, 32]
    share = covered.mean(axis=(1, 2))
    assert share.min() > 0.01
    assert share.max() < 0.6
    edge = np.concatenate([covered[:, 0], covered[:, -1]], axis=1)
    assert not edge.any()
    by_class = [share[scenes.labels == label].mean() for label in range(len(NAMES))]
    assert max(by_class) > 1.5 * min(by_class)


def test_edges_are_smooth():
    """A white ball on black has levels between the two along its outline."""
    scenes = scene.draw(5, range(0, 8, 8))
    black, white = np.zeros_like(scenes.paint), np.ones_like(scenes.paint)
    lit = dataclasses.replace(
        scenes,
        floor=black,
        sky=black,
        zenith=black,
        paint=white,
        gloss=scenes.gloss * 0,
        ambient=scenes.ambient * 0 + 1,
    )
    levels = render._render(lit)[0, 0]
    top = levels.max()
    assert ((levels > 0.3 * top) & (levels < 0.72 * top)).sum() >= 6


def test_the_stream_never_repeats_and_needs_no_generator_state():
    stream, generator = Stream(9), torch.Generator()
    before = generator.get_state()
    first, second = (stream.batch(step, 4, generator) for step in (0, 1))
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(torch.cat([first.images, second.images]), shapes(9, range(8)).images)
    assert not torch.equal(first.images, Stream(10).batch(0, 4, generator).images)
    assert first.images.amin() >= -1
    assert first.images.amax() <= 1
