"""One command that makes an image model: `python -m services.dit_worker.training --data shapes|digits`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

from services.dit_worker.model import checkpoint
from services.dit_worker.model.topology import Topology
from services.dit_worker.training import card, extractor, pictures
from services.dit_worker.training.data import DataSet, digits
from services.dit_worker.training.loop import Training, run
from services.dit_worker.training.page import page
from services.dit_worker.training.quality import Protocol, best_guidance, measure
from services.dit_worker.training.recipe import DIGITS, DIGITS_RECIPE, LADDER, SHAPES, SHAPES_RECIPE, Recipe
from services.dit_worker.training.shapes.data_set import shapes_data

EXTRACTOR_SEED = 0
GUIDANCES = (1.0, 1.25, 1.5, 1.75, 2.0)


class Kind(StrEnum):
    SHAPES = "shapes"
    DIGITS = "digits"


class Part(StrEnum):
    TRAIN = "train"
    JUDGE = "judge"
    EXPORT = "export"
    GUIDE = "guide"
    MEASURE = "measure"


FEW_SEEDS = {Kind.SHAPES: 2, Kind.DIGITS: 8}


@dataclass(frozen=True, slots=True)
class Project:
    """One model to make, and where."""

    data: DataSet
    topology: Topology
    recipe: Recipe
    out: Path
    run_folder: Path

    @property
    def judge(self) -> extractor.Judge:
        return extractor.JUDGES[self.data.name]

    def training(self) -> Training:
        return Training(self.recipe, self.topology, self.data.source)


def main(
    data: Annotated[Kind, typer.Option(help="What to train on.")] = Kind.SHAPES,
    out: Annotated[Path | None, typer.Option(help="Folder of the finished model [models/dit-DATA].")] = None,
    run_folder: Annotated[
        Path | None, typer.Option(help="Folder of the run's state; a run found there goes on [build/dit-DATA].")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=2, help="Optimiser steps [the recipe's].")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, batches, noise and times.")] = 0,
    noise_seeds: Annotated[int, typer.Option(min=1, help="Noise seeds to measure with.")] = Protocol().seeds,
    only: Annotated[Part | None, typer.Option(help="One part of the work alone.")] = None,
    other: Annotated[
        list[Path] | None,
        typer.Option(help="Folder that another seed's run was exported to; for the card. Repeatable."),
    ] = None,
) -> None:
    """Trains by Terminal Velocity Matching, writes the fp16 checkpoint, and measures what was written.

    Every part runs on one CPU thread: sums in another order would change the last bits.
    """
    torch.set_num_threads(1)
    try:
        project = _project(data, out, run_folder, steps, seed)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if only in (None, Part.TRAIN):
        run(project.training(), project.run_folder)
    if only in (None, Part.JUDGE):
        train_judge(project)
    if only in (None, Part.EXPORT):
        export(project)
    if only in (None, Part.GUIDE):
        guide(project)
    if only in (None, Part.MEASURE):
        protocol = Protocol(seeds=noise_seeds, few_seeds=min(noise_seeds, FEW_SEEDS[data]))
        typer.echo(measured_page(project, protocol, other or []))


def train_judge(project: Project) -> None:
    """The extractor that DFD is measured on, from the data alone."""
    project.out.mkdir(parents=True, exist_ok=True)
    network = extractor.train_extractor(project.data, project.judge, EXTRACTOR_SEED)
    extractor.save_extractor(network, project.out)
    typer.echo(f"{network.accuracy(project.data.held_out):.1%} of held-out classes right")


def export(project: Project) -> None:
    """The run's sampling weights as fp16, and its config."""
    data, training = project.data, project.training()
    training.load(project.run_folder / "state.safetensors")
    guidance_max, record = training.recipe.guidance_max, training.record()
    name = f"dit-{data.name}"
    draft = checkpoint.Config(name, project.topology, data.class_names, guidance_max, LADDER, "", record)
    checkpoint.save(project.out, training.shipped(), draft)


def guide(project: Project) -> None:
    """The guidance that each rung is best with, into config.json; a model that was trained without any stays so."""
    judge = extractor.load_extractor(project.out, project.judge)
    config, network = checkpoint.load_weights(project.out)
    if config.guidance_max == 1:
        return
    weights = [weight for weight in GUIDANCES if weight <= config.guidance_max]
    chosen = best_guidance(network, judge, project.data, config.ladder, weights)
    checkpoint.write_config(project.out, replace(config, guidance=chosen))
    typer.echo(f"guidance by steps: {chosen.as_steps()}")


def measured_page(project: Project, protocol: Protocol, others: Sequence[Path]) -> str:
    """Measures the shipped files, writes card.json, README.md and samples.png, and returns the page.

    `others` are exports of the same recipe from other seeds: the card says how far training runs lie apart.
    """
    folder, data = project.out, project.data
    judge = extractor.load_extractor(folder, project.judge)
    config, network = checkpoint.load_weights(folder)
    measured = measure(network, judge, data, protocol, config.ladder[0], config.guidance)
    content = card.card(folder, config, measured, judge, data)
    content["other_runs"] = [card.other_run(*checkpoint.load_weights(one), judge, data, protocol) for one in others]
    card.write(folder, content)
    pictures.rung_sheet(network, config.ladder, config.guidance).save(folder / "samples.png")
    return page(content)


def _project(kind: Kind, out: Path | None, run_folder: Path | None, steps: int | None, seed: int) -> Project:
    shapes = kind is Kind.SHAPES
    recipe = SHAPES_RECIPE if shapes else DIGITS_RECIPE
    recipe = replace(recipe, seed=seed, steps=recipe.steps if steps is None else steps)
    return Project(
        data=shapes_data(seed) if shapes else digits(),
        topology=SHAPES if shapes else DIGITS,
        recipe=recipe,
        out=out or Path(f"models/dit-{kind}"),
        run_folder=run_folder or Path(f"build/dit-{kind}"),
    )


if __name__ == "__main__":
    typer.run(main)
