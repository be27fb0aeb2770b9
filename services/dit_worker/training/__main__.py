"""`python -m services.dit_worker.training`: train the digits model, export it, measure it."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from services.dit_worker.model import checkpoint
from services.dit_worker.training import card, extractor
from services.dit_worker.training.data import digits
from services.dit_worker.training.loop import Training, run
from services.dit_worker.training.quality import Protocol, measure
from services.dit_worker.training.recipe import DIGITS, LADDER, Recipe

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

RunFolder = Annotated[Path, typer.Option(help="Folder of the run's state; a run found there is resumed.")]
ModelFolder = Annotated[Path, typer.Option(help="Folder of the shipped model.")]
Steps = Annotated[int, typer.Option(min=2, help="Optimiser steps.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of weights, batches, noise and times.")]
RUN, MODEL = Path("build/dit-digits"), Path("models/dit-digits")
STEPS, EXTRACTOR_SEED = Recipe().steps, 0


@app.callback()
def one_thread() -> None:
    """Every command runs on one CPU thread: sums in another order would change the last bits."""
    torch.set_num_threads(1)


@app.command()
def train(run_folder: RunFolder = RUN, steps: Steps = STEPS, seed: Seed = 0) -> None:
    """Train on scikit-learn's digits by Terminal Velocity Matching; 15 to 25 minutes."""
    run(Training(Recipe(steps=steps, seed=seed), DIGITS, digits().train), run_folder)


@app.command()
def export(run_folder: RunFolder = RUN, model: ModelFolder = MODEL, steps: Steps = STEPS, seed: Seed = 0) -> None:
    """Write the run's sampling weights as fp16, its config, and the extractor that DFD is measured on."""
    data = digits()
    training = Training(Recipe(steps=steps, seed=seed), DIGITS, data.train)
    training.load(run_folder / "state.safetensors")
    names = tuple(str(digit) for digit in range(DIGITS.classes))
    guidance_max, record = training.recipe.guidance_max, training.record()
    draft = checkpoint.Config("dit-digits", DIGITS, names, guidance_max, LADDER, "", record)
    checkpoint.save(model, training.shipped(), draft)
    extractor.save_extractor(extractor.train_extractor(data.train, EXTRACTOR_SEED), model)


@app.command(name="measure")
def measure_model(
    model: ModelFolder = MODEL,
    seeds: Annotated[int, typer.Option(min=1, help="Noise seeds.")] = Protocol().seeds,
) -> None:
    """Measure the shipped files and write card.json and README.md."""
    data, judge = digits(), extractor.load_extractor(model)
    config, network = checkpoint.load_weights(model)
    measured = measure(network, judge, data, Protocol(seeds=seeds))
    content = card.card(model, config, measured, judge, data)
    card.write(model, content)
    typer.echo(card.page(content))


if __name__ == "__main__":
    app()
