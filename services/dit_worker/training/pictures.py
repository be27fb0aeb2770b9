"""Pictures of a run: its losses, and what each rung makes of the same noise."""

import csv
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from services.dit_worker.encode import to_pixels
from services.dit_worker.model.flow_map import FlowMap
from services.dit_worker.model.guidance import UNGUIDED, Guidance
from services.dit_worker.training.quality import generate

SHEET_SEED, SHEET_ROWS, GUTTER_PX, SHEET_WIDTH_PX = 7, 4, 2, 1600


def plot_losses(log: Path, out: Path) -> None:
    """`log` holds rows of step, terminal, flow, seconds; both terms over steps on a logarithmic scale."""
    with log.open() as file:
        rows = np.array([[float(cell) for cell in row[:3]] for row in csv.reader(file)])
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss", yscale="log")
    for column, name in ((1, "terminal velocity"), (2, "flow matching")):
        axes.plot(rows[:, 0], rows[:, column], label=name, linewidth=1)
    axes.legend()
    figure.savefig(out, dpi=100)


def rung_sheet(flow: FlowMap, ladder: tuple[int, ...], guidance: Guidance = UNGUIDED) -> Image.Image:
    """A block for each rung, side by side: every class from the same noise."""
    labels = torch.arange(flow.topology.classes).repeat(SHEET_ROWS)
    blocks = [_block(generate(flow, labels, steps, SHEET_SEED, guidance), flow.topology.classes) for steps in ladder]
    return sheet(blocks)


def contact_sheet(images: Tensor, columns: int) -> Image.Image:
    """images: [rows * columns, channels, height, width] in [-1, 1]."""
    return sheet([_block(images, columns)])


def sheet(blocks: list[Tensor]) -> Image.Image:
    """[channels, height, width] blocks side by side, enlarged by a whole factor without smoothing."""
    gutter = torch.ones(*blocks[0].shape[:2], GUTTER_PX)
    parts = [part for block in blocks for part in (gutter, block)][1:]
    pixels = to_pixels(torch.cat(parts, dim=2))
    picture = Image.fromarray(pixels.squeeze(axis=2) if pixels.shape[2] == 1 else pixels)
    zoom = max(1, round(SHEET_WIDTH_PX / picture.width))
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def _block(images: Tensor, columns: int) -> Tensor:
    count, channels, height, width = images.shape
    grid = images.view(count // columns, columns, channels, height, width)
    return grid.permute(2, 0, 3, 1, 4).reshape(channels, count // columns * height, columns * width)
