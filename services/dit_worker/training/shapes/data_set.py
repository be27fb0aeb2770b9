"""The shapes as a data set: an endless stream to train on, and pictures of other seeds that nothing is fitted to."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.dit_worker.training.data import DataSet, Split
from services.dit_worker.training.shapes.render import pictures
from services.dit_worker.training.shapes.scene import draw
from services.dit_worker.training.shapes.solids import NAMES

HELD_OUT_SEED, FIRST_TRAIN_SEED = 2_000_000, 1
TRAIN, HELD_OUT, GENERATED = 12_288, 2048, 1024


@dataclass(frozen=True, slots=True)
class Stream:
    """Shapes that no step has seen before: step k takes the k-th `rows` of the stream that `seed` names."""

    seed: int

    def batch(self, step: int, rows: int, generator: torch.Generator) -> Split:
        return shapes(self.seed, range(step * rows, (step + 1) * rows))


def shapes(seed: int, indices: range) -> Split:
    """Rendered 32x32 RGB shapes, the same for the same (seed, index)."""
    pixels, labels = pictures(seed, indices)
    return Split(torch.from_numpy(pixels).float() / 127.5 - 1, torch.from_numpy(labels))


def held_out() -> Split:
    """2048 pictures to measure on; a few seconds."""
    return shapes(HELD_OUT_SEED, range(HELD_OUT))


def shapes_data(run_seed: int = 0) -> DataSet:
    """Everything that training and measuring the run of `run_seed` needs; half a minute on one core.

    Each run trains on its own stream; `train` is the start of run 0's.
    """
    indices = range(TRAIN)
    train, held = shapes(FIRST_TRAIN_SEED, indices), held_out()
    return DataSet(
        name="shapes",
        class_names=NAMES,
        train=train,
        held_out=held,
        source=Stream(FIRST_TRAIN_SEED + run_seed),
        labels=train.labels[:GENERATED],
        traits=_traits(FIRST_TRAIN_SEED, indices),
        facts={
            "name": "32x32 RGB pictures of eight solids, rendered by services/dit_worker/training/shapes",
            "licence": "Apache-2.0, made by this repository",
            "train": TRAIN,
            "held_out": HELD_OUT,
            "split": f"streams of seed {FIRST_TRAIN_SEED} (training) and {HELD_OUT_SEED} (held out); training sees"
            " every picture once, and the train images of this card are the first of its stream",
        },
    )


def _traits(seed: int, indices: range) -> Tensor:
    """What the recipe knows of each picture beside its class; [n, 24], standardised."""
    scenes = draw(seed, indices)
    axis = scenes.turn[:, 1]  # where the solid's own "up" points
    single = (scenes.form, scenes.gloss, scenes.ambient, scenes.elevation, scenes.distance)
    colours = (scenes.paint, scenes.floor, scenes.sky, scenes.zenith)
    table = np.concatenate([*colours, scenes.light, axis, scenes.offset[:, :1], np.stack(single, axis=1)], axis=1)
    known = torch.from_numpy(table.astype(np.float32))
    return (known - known.mean(dim=0)) / known.std(dim=0)
