"""The small convolutional network whose features DFD is measured on, trained on the train split alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as nnf

from services.dit_worker.training.data import DataSet, Split

EXTRACTOR = "extractor.safetensors"


@dataclass(frozen=True, slots=True)
class Judge:
    """An extractor's shape and how it is trained.

    Each stage is convolutions of these widths and a halving of the picture. `traits` is how many known properties of an
    image it learns to tell beside the class. Turn in radians, shift in half image widths, zoom as a share: how far
    training images are moved at random.
    """

    image_px: int
    channels: int
    stages: tuple[tuple[int, ...], ...]
    features: int
    classes: int
    traits: int = 0
    steps: int = 1500
    batch: int = 64
    learning_rate: float = 2e-3
    turn: float = 0.0
    shift: float = 0.0
    zoom: float = 0.0

    @property
    def flat(self) -> int:
        side: int = self.image_px >> len(self.stages)
        return self.stages[-1][-1] * side * side


JUDGES = {
    "digits": Judge(8, 1, ((32, 32), (64,)), features=32, classes=10, turn=0.15, shift=0.125, zoom=0.1),
    "shapes": Judge(32, 3, ((24,), (48,), (96,)), features=48, classes=8, traits=24, steps=1200),
}


class Extractor(nn.Module):
    """[n, channels, height, width] images to [n, features], standardised on the train split."""

    mean: Tensor
    std: Tensor

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge = judge
        self.convolutions = nn.Sequential(*_layers(judge))
        self.hidden = nn.Linear(judge.flat, judge.features)
        self.classes = nn.Linear(judge.features, judge.classes)
        self.traits = nn.Linear(judge.features, judge.traits) if judge.traits else None
        self.register_buffer("mean", torch.zeros(judge.features))
        self.register_buffer("std", torch.ones(judge.features))

    def forward(self, images: Tensor) -> Tensor:
        return (self.raw(images) - self.mean) / self.std

    def raw(self, images: Tensor) -> Tensor:
        activations: Tensor = self.hidden(self.convolutions(images))
        return activations

    def loss(self, images: Tensor, labels: Tensor, traits: Tensor | None) -> Tensor:
        """Cross-entropy of the class, and the squared error of the traits."""
        hidden = nnf.relu(self.raw(images))
        loss = nnf.cross_entropy(self.classes(hidden), labels)
        if self.traits is not None and traits is not None:
            loss = loss + nnf.mse_loss(self.traits(hidden), traits)
        return loss

    @torch.inference_mode()
    def accuracy(self, split: Split) -> float:
        found = self.classes(nnf.relu(self.raw(split.images))).argmax(dim=1)
        return float((found == split.labels).float().mean())


def train_extractor(data: DataSet, judge: Judge, seed: int) -> Extractor:
    """Weight decay, dropout and the judge's random moves; a minute or two on one core."""
    torch.manual_seed(seed)
    generator, network = torch.Generator().manual_seed(seed), Extractor(judge)
    optimiser = torch.optim.AdamW(network.parameters(), lr=judge.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, judge.steps)
    train = data.train
    for _ in range(judge.steps):
        rows = torch.randint(len(train), (judge.batch,), generator=generator)
        images = _moved(train.images[rows], judge, generator)
        loss = network.loss(images, train.labels[rows], None if data.traits is None else data.traits[rows])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return _standardised(network, train)


def save_extractor(extractor: Extractor, folder: Path) -> None:
    save_file({key: value.contiguous() for key, value in extractor.state_dict().items()}, folder / EXTRACTOR)


def load_extractor(folder: Path, judge: Judge) -> Extractor:
    extractor = Extractor(judge)
    extractor.load_state_dict(load_file(folder / EXTRACTOR))
    return extractor.eval().requires_grad_(False)


def _layers(judge: Judge) -> Iterator[nn.Module]:
    channels = judge.channels
    for widths in judge.stages:
        for width in widths:
            yield from (nn.Conv2d(channels, width, 3, padding=1), nn.ReLU())
            channels = width
        yield nn.MaxPool2d(2)
    yield from (nn.Flatten(), nn.Dropout(0.3))


@torch.no_grad()
def _standardised(network: Extractor, train: Split) -> Extractor:
    features = network.raw(train.images)
    network.mean.copy_(features.mean(dim=0))
    network.std.copy_(features.std(dim=0))
    return network.eval().requires_grad_(False)


def _moved(images: Tensor, judge: Judge, generator: torch.Generator) -> Tensor:
    """Each image turned, moved and zoomed a little by itself; paper (-1) moves in."""
    if not (judge.turn or judge.shift or judge.zoom):
        return images
    draws = torch.rand(4, len(images), generator=generator) * 2 - 1
    turn, zoom = draws[0] * judge.turn, 1 + draws[1] * judge.zoom
    sine, cosine = zoom * turn.sin(), zoom * turn.cos()
    dx, dy = draws[2] * judge.shift, draws[3] * judge.shift
    rows = torch.stack([cosine, -sine, dx, sine, cosine, dy], dim=1)
    grid = nnf.affine_grid(rows.view(-1, 2, 3), list(images.shape), align_corners=False)
    return nnf.grid_sample(images + 1, grid, align_corners=False) - 1
