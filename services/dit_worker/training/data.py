"""The digits that scikit-learn carries: 1797 grey images of 8x8, the UCI test set of Alpaydin and Kaynak."""

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

SPLIT_SEED = 0
HELD_OUT = 599
FULL_SCALE = 16.0  # the data set counts ink from 0 to 16


@dataclass(frozen=True, slots=True)
class Split:
    """images: [n, 1, 8, 8] float32 in [-1, 1]; labels: [n] int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Digits:
    train: Split
    held_out: Split


def digits(split_seed: int = SPLIT_SEED) -> Digits:
    """1198 images to train on and 599 that nothing is ever fitted to, stratified by class."""
    bunch = load_digits()
    train_x, held_x, train_y, held_y = train_test_split(
        bunch.data, bunch.target, test_size=HELD_OUT, stratify=bunch.target, random_state=split_seed
    )
    return Digits(_split(train_x, train_y), _split(held_x, held_y))


def _split(pixels: object, labels: object) -> Split:
    images = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / (FULL_SCALE / 2) - 1
    return Split(images, torch.as_tensor(labels, dtype=torch.int64))
