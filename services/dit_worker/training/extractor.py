"""The small convolutional network whose features DFD is measured on, trained on the train split alone."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as nnf

from services.dit_worker.training.data import Split

FEATURES = 32
EXTRACTOR = "extractor.safetensors"
STEPS, BATCH, LEARNING_RATE = 1500, 64, 2e-3
MOST_TURN, MOST_SHIFT, MOST_ZOOM = 0.15, 0.125, 0.1  # radians; half image widths; share


class Extractor(nn.Module):
    """[n, 1, 8, 8] images to [n, 32] features, standardised on the train split."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(0.3),
        )  # fmt: skip
        self.hidden = nn.Linear(64 * 4, FEATURES)
        self.classes = nn.Linear(FEATURES, 10)
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("std", torch.ones(FEATURES))

    def forward(self, images: Tensor) -> Tensor:
        return (self.raw(images) - self.mean) / self.std

    def raw(self, images: Tensor) -> Tensor:
        activations: Tensor = self.hidden(self.convolutions(images))
        return activations

    def logits(self, images: Tensor) -> Tensor:
        scores: Tensor = self.classes(nnf.relu(self.raw(images)))
        return scores

    @torch.inference_mode()
    def accuracy(self, split: Split) -> float:
        return float((self.logits(split.images).argmax(dim=1) == split.labels).float().mean())


def train_extractor(train: Split, seed: int) -> Extractor:
    """Cross-entropy with weight decay, dropout and small turns, shifts and zooms; seconds on one core."""
    torch.manual_seed(seed)
    generator, network = torch.Generator().manual_seed(seed), Extractor()
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(train), (BATCH,), generator=generator)
        loss = nnf.cross_entropy(network.logits(_jittered(train.images[rows], generator)), train.labels[rows])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return _standardised(network, train)


def save_extractor(extractor: Extractor, folder: Path) -> None:
    save_file({key: value.contiguous() for key, value in extractor.state_dict().items()}, folder / EXTRACTOR)


def load_extractor(folder: Path) -> Extractor:
    extractor = Extractor()
    extractor.load_state_dict(load_file(folder / EXTRACTOR))
    return extractor.eval().requires_grad_(False)


@torch.no_grad()
def _standardised(network: Extractor, train: Split) -> Extractor:
    features = network.raw(train.images)
    network.mean.copy_(features.mean(dim=0))
    network.std.copy_(features.std(dim=0))
    return network.eval().requires_grad_(False)


def _jittered(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned, moved and zoomed a little by itself; paper (-1) moves in."""
    draws = torch.rand(4, len(images), generator=generator) * 2 - 1
    turn, zoom = draws[0] * MOST_TURN, 1 + draws[1] * MOST_ZOOM
    sine, cosine = zoom * turn.sin(), zoom * turn.cos()
    dx, dy = draws[2] * MOST_SHIFT, draws[3] * MOST_SHIFT
    rows = torch.stack([cosine, -sine, dx, sine, cosine, dy], dim=1)
    grid = nnf.affine_grid(rows.view(-1, 2, 3), list(images.shape), align_corners=False)
    return nnf.grid_sample(images + 1, grid, align_corners=False) - 1
