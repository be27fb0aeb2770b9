"""What a data set is, and scikit-learn's digits: the UCI test set of Alpaydin and Kaynak, 1797 images of 8x8."""

from dataclasses import dataclass
from typing import Protocol

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

SPLIT_SEED = 0
DIGITS_NAME = "scikit-learn digits (test set of UCI Optical Recognition of Handwritten Digits, Alpaydin and Kaynak)"
HELD_OUT = 599
FULL_SCALE = 16.0  # the data set counts ink from 0 to 16


@dataclass(frozen=True, slots=True)
class Split:
    """images: [n, channels, height, width] float32 in [-1, 1]; labels: [n] int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, step: int, rows: int, generator: torch.Generator) -> "Split":
        """Rows at random, with repeats; a Source."""
        chosen = torch.randint(len(self), (rows,), generator=generator)
        return Split(self.images[chosen], self.labels[chosen])


class Source(Protocol):
    """Where a training run's images come from."""

    def batch(self, step: int, rows: int, generator: torch.Generator) -> Split:
        """The images of one step. What is random comes from `generator`, or from `step` alone."""
        ...


@dataclass(frozen=True, slots=True)
class DataSet:
    """Images to train on and images that nothing is ever fitted to.

    `source` is what a run draws from, and `train` a fixed part of it: the extractor, the floor, the baselines and the
    nearest-neighbour check use that. `traits` holds what else is known of each train image, [n, traits], standardised;
    the extractor learns it beside the class. `labels`: what each noise seed generates. `facts` go to the card.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    held_out: Split
    source: Source
    labels: Tensor
    traits: Tensor | None
    facts: dict[str, str | int]


def digits(split_seed: int = SPLIT_SEED) -> DataSet:
    """1198 images to train on and 599 held out, stratified by class."""
    bunch = load_digits()
    train_x, held_x, train_y, held_y = train_test_split(
        bunch.data, bunch.target, test_size=HELD_OUT, stratify=bunch.target, random_state=split_seed
    )
    train, held_out = _split(train_x, train_y), _split(held_x, held_y)
    return DataSet(
        name="digits",
        class_names=tuple(str(digit) for digit in range(10)),
        train=train,
        held_out=held_out,
        source=train,
        labels=train.labels,
        traits=None,
        facts={
            "name": DIGITS_NAME,
            "licence": "CC BY 4.0 (UCI); carried by scikit-learn, BSD-3-Clause",
            "train": len(train),
            "held_out": len(held_out),
            "split": f"stratified, seed {split_seed}",
        },
    )


def _split(pixels: object, labels: object) -> Split:
    images = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / (FULL_SCALE / 2) - 1
    return Split(images, torch.as_tensor(labels, dtype=torch.int64))
